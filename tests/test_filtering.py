"""What chapters 6 to 9 measure with: probes of trained layers, and false matches."""

import torch
from kit.false_match import SeparableBatchNorm, SmallNetwork, spread, with_false_matches
from kit.filtering import Probe, over_levels, trained_layers
from kit.pages import SIZE
from torch.nn import functional as F

from hsnet import HSNet, SeparableConv4d, hypercorrelation_pyramid, mask_features
from hsnet.episodes import Batch


def squares(count):
    masks = torch.zeros(count, SIZE, SIZE, dtype=torch.bool)
    for i in range(count):
        masks[i, 32 * (i % 4) :, 64:192] = True
    return masks


def test_a_probe_reads_the_channel_that_holds_the_mask():
    torch.manual_seed(0)
    masks = squares(8)
    x = torch.randn(8, 5, 36, 36)
    x[:, 2] = 3 * F.adaptive_avg_pool2d(masks[:, None].float(), 36)[:, 0] - 1
    probe = Probe(x, masks)
    assert probe.weights.argmax() == 2
    assert probe.iou > 95
    both, either = probe.masks(x) & masks, probe.masks(x) | masks
    assert both.sum() / either.sum() > 0.95
    # Noise reads little.
    assert Probe(torch.randn(8, 5, 36, 36), masks).iou < masks.float().mean() * 110


def test_trained_layers_are_those_of_the_blocks():
    torch.manual_seed(0)
    model = HSNet("efficientnet_lite0", pretrained=False).eval()
    images = torch.randint(0, 256, (2, 3, 96, 96), dtype=torch.uint8)
    mask = torch.zeros(1, 1, 96, 96, dtype=torch.bool)
    mask[..., 16:80, 16:64] = True
    batch = Batch(images[:1], mask[0], mask[0], mask[0], images[1:, None], mask, torch.zeros(1, dtype=torch.long))
    with torch.no_grad():
        query, support = (model.backbone(model.backbone.normalize(image[None])) for image in images)
        pyramid = hypercorrelation_pyramid(query, mask_features(support, mask[0]))
        blocks = [*zip(model.encoder.squeezing, pyramid, strict=True)]
        expected = [[block.layers[: 3 * i](x) for block, x in blocks] for i in (1, 2, 3)]
    found = trained_layers(model, batch)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    assert over_levels(found[0]).shape == (1, 3 * 16, 12, 12)


def test_false_matches_join_background_with_the_object():
    share, objects = torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)
    share[0, :2], objects[0, 1, 2] = 1, 0.5
    data = {"x": torch.zeros(1, 3, 4, 4, 4, 4), "share": share, "support_share": objects}
    x, [first] = with_false_matches(data, count=5)
    assert (x == 1).sum() == 5 * 3
    assert (x[0, :, :2] == 0).all()  # the query's object
    assert (x[0].sum((0, 1, 2)) > 0).nonzero().tolist() == [[1, 2]]
    assert (x[0, :, first[0], first[1], 1, 2] == 1).all()
    # How far a change at one position spreads.
    before = torch.tensor([[[0.0, 1.0], [-1.0, 0.5]]])
    after = before.clone()
    after[0, 0, 1] = -1
    found = spread(before, after, [(0, 1)])
    assert found["elsewhere, mean"] == 0
    assert found["decisions changed"] == found["positions above 0.1"] == 1


def test_batch_normalisation_stands_between_the_two_convolutions():
    torch.manual_seed(0)
    plain, x = SeparableConv4d(2, 3, 3, 2), torch.randn(2, 2, 4, 4, 5, 5)
    ours = SeparableBatchNorm(2, 3, 3, 2).eval()
    ours.load_state_dict(plain.state_dict() | ours.between.state_dict(prefix="between."))
    torch.testing.assert_close(ours(x), plain(x), atol=1e-4, rtol=1e-4)
    ours.train()
    assert (ours(x) - plain(x)).abs().max() > 0.1
    assert SmallNetwork("separable, batch normalisation", 2)(x).shape == (2, 4, 4)
