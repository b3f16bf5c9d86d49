"""Masking and correlation, and their edges."""

import torch
from torch.nn import functional as F

from hsnet import correlate, hypercorrelation_pyramid, mask_features


def test_correlate_is_the_cosine_of_every_pair_and_leaves_its_inputs_alone():
    query, support = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 2, 3)
    before = query.clone()
    expected = F.cosine_similarity(query[..., None, None], support[:, :, None, None]).clamp(min=0)
    torch.testing.assert_close(correlate(query, support), expected, atol=1e-4, rtol=0)
    assert torch.equal(query, before)


def test_correlation_is_a_cosine_between_0_and_1():
    feature = torch.randn(1, 8, 4, 5)
    c = correlate(feature, feature)
    assert c.min() == 0
    diagonal = c.flatten(3).flatten(1, 2).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(diagonal, torch.ones_like(diagonal), atol=1e-4, rtol=0)
    assert correlate(feature, torch.zeros(1, 8, 2, 2)).eq(0).all()


def test_masking_hides_the_background_and_keeps_new_tensors():
    feature = torch.rand(1, 2, 4, 4) + 1
    mask = torch.zeros(1, 40, 40, dtype=torch.bool)
    mask[:, :, 20:] = True
    masked = mask_features([[feature]], mask)[0][0]
    assert masked[..., 0].eq(0).all()
    torch.testing.assert_close(masked[..., 3], feature[..., 3])
    # Any non-zero weight cancels in the cosine: a half-covered position counts like a covered one.
    torch.testing.assert_close(correlate(feature, masked * 0.5), correlate(feature, masked), atol=1e-4, rtol=0)


def test_a_small_object_vanishes_at_a_coarse_level():
    mask = torch.zeros(1, 400, 400)
    mask[:, 10:26, 10:26] = 1
    fine, coarse = mask_features([[torch.ones(1, 1, 50, 50)], [torch.ones(1, 1, 13, 13)]], mask)
    assert fine[0].sum() > 0
    assert coarse[0].sum() == 0
    torch.testing.assert_close(fine[0], F.interpolate(mask[:, None], (50, 50), mode="bilinear", align_corners=True))


def test_pyramid_of_different_sizes_and_batches():
    query = [[torch.randn(2, 4, 6, 5)] * 2, [torch.randn(2, 8, 3, 3)]]
    support = [[torch.randn(2, 4, 4, 7)] * 2, [torch.randn(2, 8, 2, 4)]]
    pyramid = hypercorrelation_pyramid(query, support)
    assert [tuple(c.shape) for c in pyramid] == [(2, 2, 6, 5, 4, 7), (2, 1, 3, 3, 2, 4)]
    assert pyramid[0].stride(1) == 1  # channels innermost
    torch.testing.assert_close(pyramid[1][1, 0], correlate(query[1][0][1:], support[1][0][1:])[0])
