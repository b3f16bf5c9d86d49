"""Correlation and first convolution in one against the definition: the whole pyramid, then the convolution."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hsnet import CenterPivotConv4d, hypercorrelation_pyramid, mask_features
from hsnet.correlation import unit_vectors
from hsnet.fast import correlation as fused

side = st.integers(1, 11)


def case(kernel_size, stride, sides, batch, layers, covered):
    """A convolution in float64, features of a query and a support, and a mask that covers so much of it."""
    hq, wq, hs, ws = sides
    conv = CenterPivotConv4d(layers, 3, kernel_size, stride).double()
    query = [torch.randn(batch, 4, hq, wq, dtype=torch.float64) for _ in range(layers)]
    support = [torch.randn(batch, 4, hs, ws, dtype=torch.float64) for _ in range(layers)]
    mask = None if covered is None else torch.rand(batch, hs, ws) < covered
    return conv, query, support, mask


def fast(conv, query, support, mask):
    return fused.correlate_and_convolve(conv, [unit_vectors(f) for f in query], fused.cut(support, mask, conv))


def by_definition(conv, query, support, mask):
    masked = support if mask is None else mask_features([support], mask)[0]
    return conv(hypercorrelation_pyramid([query], [masked])[0])


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from([1, 3, 5]),
    st.integers(1, 4),
    st.tuples(side, side, side, side),
    st.integers(1, 2),
    st.integers(1, 3),
    st.sampled_from([None, 0.0, 0.05, 0.3, 1.0]),
    st.sampled_from([2**7, 2**12, 2**23]),
    st.booleans(),
)
def test_is_the_definition(kernel_size, stride, sides, batch, layers, covered, slice_bytes, keep):
    before = fused.SLICE, fused.KEEP
    fused.SLICE, fused.KEEP = slice_bytes, 2**27 if keep else 0
    try:
        conv, *given = case(kernel_size, stride, sides, batch, layers, covered)
        found, expected = fast(conv, *given), by_definition(conv, *given)
        torch.testing.assert_close(found, expected)
        gradient = torch.randn_like(expected)
        ours = torch.autograd.grad(found, list(conv.parameters()), gradient)
        theirs = torch.autograd.grad(expected, list(conv.parameters()), gradient)
        torch.testing.assert_close(ours, theirs)
    finally:
        fused.SLICE, fused.KEEP = before


def test_only_what_is_inside_the_mask_is_multiplied():
    conv, _, support, _ = case(5, 4, (9, 9, 9, 9), 1, 1, None)
    mask = torch.zeros(1, 9, 9, dtype=torch.bool)
    mask[0, 6, 3:6] = True
    (cut,) = fused.cut(support, mask, conv)
    assert cut.layers[0].shape == (3, 4)
    # Rows 4 to 8 of 9: from the multiple of the stride before the mask to the last output that sees it, in row 8.
    assert (cut.top, cut.inside.shape[0]) == (4, 5)


@pytest.mark.parametrize("stride", [1, 2])
def test_the_fused_path_takes_the_precision_of_autocast(stride):
    """On a GPU the unit vectors are float32 under autocast, for a norm is taken in it: the products are not."""
    torch.manual_seed(0)
    conv = CenterPivotConv4d(2, 3, 3, stride)
    query, support = ([torch.randn(2, 4, 5, 6) for _ in range(2)] for _ in range(2))
    mask = torch.rand(2, 5, 6) < 0.5
    with torch.autocast("cpu", torch.bfloat16):
        found = fast(conv, query, support, mask)
    assert found.dtype == torch.bfloat16
    expected = by_definition(conv, query, support, mask)
    torch.testing.assert_close(found.float(), expected, rtol=0.03, atol=0.03)
    gradient = torch.randn_like(expected)
    ours = torch.autograd.grad(found, list(conv.parameters()), gradient.bfloat16())
    theirs = torch.autograd.grad(expected, list(conv.parameters()), gradient)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - other).norm() < 0.02 * other.norm()
