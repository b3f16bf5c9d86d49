"""The kernels against six nested loops, against each other, and against the plain path."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.filtering import as_dense
from torch.nn import functional as F

from hsnet import CenterPivotConv4d, DenseConv4d, SeparableConv4d, naive
from hsnet.conv4d import KERNELS

small = st.integers(1, 6)
SIZES_AND_STRIDES = pytest.mark.parametrize(("kernel_size", "stride"), [(k, s) for k in (3, 5) for s in (1, 2, 4)])


def random_conv(kernel, *arguments):
    conv = kernel(*arguments).double()
    for parameter in conv.parameters():
        torch.nn.init.normal_(parameter)
    return conv


def six_loops(x, weight, bias, stride):
    """Equation (3) with zero padding: four loops over the output, two over the half of the kernel for the query."""
    x, k = F.pad(x, (weight.shape[-1] // 2,) * 8), weight.shape[-1]
    hq, wq, hs, ws = (n - k + 1 for n in x.shape[2:])
    result = bias.view(-1, 1, 1, 1, 1).repeat(len(x), 1, hq, wq, -(-hs // stride), -(-ws // stride))
    for i, j, m, n in product(*map(range, result.shape[2:])):
        for p, q in product(range(k), range(k)):
            patch = x[:, :, i + p, j + q, m * stride : m * stride + k, n * stride : n * stride + k]
            result[:, :, i, j, m, n] += torch.einsum("bcuv,dcuv->bd", patch, weight[:, :, p, q])
    return result


@SIZES_AND_STRIDES
def test_dense_is_six_loops(kernel_size, stride):
    conv = random_conv(DenseConv4d, 2, 3, kernel_size, stride)
    x = torch.randn(2, 2, 3, 4, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(conv(x), six_loops(x, conv.weight, conv.bias, stride))


@SIZES_AND_STRIDES
def test_center_pivot_is_the_masked_dense_kernel(kernel_size, stride):
    conv = random_conv(CenterPivotConv4d, 2, 3, kernel_size, stride)
    x = torch.randn(1, 2, 4, 3, 6, 5, dtype=torch.float64)
    weight, bias = as_dense(conv)
    torch.testing.assert_close(conv(x), six_loops(x, weight, bias, stride))
    # 2k² positions of k⁴ carry weights, one of them twice.
    used = (weight != 0).flatten(2).any(1).any(0).sum()
    assert used == 2 * kernel_size**2 - 1


@pytest.mark.parametrize("stride", [1, 2])
def test_separable_is_the_dense_kernel_of_outer_products(stride):
    conv = random_conv(SeparableConv4d, 2, 3, 3, stride)
    x = torch.randn(1, 2, 4, 3, 5, 6, dtype=torch.float64)
    # Query padding is applied between the two steps, so the first step's bias must not leak into it: compare without.
    torch.nn.init.zeros_(conv.support.bias)
    weight = torch.einsum("dmpq,mcuv->dcpquv", conv.query.weight, conv.support.weight)
    torch.testing.assert_close(conv(x), six_loops(x, weight, conv.query.bias, stride))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1, 3, 5]), st.integers(1, 4), small, small, small, small, st.integers(1, 3), st.booleans())
def test_fast_is_plain(kernel_size, stride, hq, wq, hs, ws, batch, innermost):
    conv = random_conv(CenterPivotConv4d, 3, 2, kernel_size, stride)
    x = torch.randn(batch, 3, hq, wq, hs, ws, dtype=torch.float64)
    if innermost:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    torch.testing.assert_close(conv(x), naive.convolve_center_pivot(conv, x))


@pytest.mark.parametrize("kernel", KERNELS.values())
def test_gradients_and_bad_settings(kernel):
    conv = random_conv(kernel, 2, 2, 3, 2)
    x = torch.randn(1, 2, 3, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: conv(x), (x, *conv.parameters()), fast_mode=True)
    with pytest.raises(ValueError, match="kernel_size is 4: it must be odd"):
        kernel(2, 2, 4)
    with pytest.raises(ValueError, match="stride is 0"):
        kernel(2, 2, 3, 0)
