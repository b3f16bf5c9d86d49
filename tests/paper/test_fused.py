"""Correlation and first convolution in one against the definition: the whole pyramid, then the convolution."""

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


def both(conv, query, support, mask):
    """The result, the fast way and by definition."""
    fast = fused.correlate_and_convolve(conv, [unit_vectors(f) for f in query], fused.cut(support, mask, conv))
    masked = support if mask is None else mask_features([support], mask)[0]
    return fast, conv(hypercorrelation_pyramid([query], [masked])[0])


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
        fast, expected = both(conv, *given)
        torch.testing.assert_close(fast, expected)
        gradient = torch.randn_like(expected)
        ours = torch.autograd.grad(fast, list(conv.parameters()), gradient)
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
