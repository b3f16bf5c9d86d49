"""The rule "mean" over scales of the images."""

import torch

from hsnet import HSNet
from hsnet.averaging import features_of, mean_maps
from hsnet.benchmarks import load_benchmark
from hsnet.episodes import EpisodeDataset, test_episodes


def test_scales_are_averaged_and_the_truth_keeps_its_size():
    torch.manual_seed(0)
    model = HSNet("efficientnet_lite0", pretrained=False, levels=1).eval()
    shapes = load_benchmark("shapes", size=64)
    batch = EpisodeDataset(shapes, 64, test_episodes(shapes, fold=0, shot=2, count=1))[0]
    larger = batch.enlarged(2.0)
    assert larger.query.shape == (1, 3, 128, 128)
    assert larger.support_mask.shape == (1, 2, 128, 128)
    assert larger.query_mask.shape == (1, 64, 64)
    assert larger.support_mask.float().mean() == batch.support_mask.float().mean()
    with torch.no_grad():
        levels = features_of(model, batch)
    both = mean_maps(model, batch, (64, 64), (1.0, 2.0), levels)
    one, other = mean_maps(model, batch, (64, 64), (1.0,), levels), mean_maps(model, batch, (64, 64), (2.0,), levels)
    for map_, first, second in zip(both, one, other, strict=True):
        assert (first - second).abs().max() > 1e-4
        assert torch.allclose(map_, (first + second) / 2, atol=1e-6)
