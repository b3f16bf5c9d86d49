"""Windows around objects, and the rule "mean" that processes them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from hsnet import Config, HSNet, Segmenter
from hsnet.averaging import FOUND, PRIOR, QUERY_MARGIN, mean_maps, prepare_supports, zooms
from hsnet.baselines import with_prior
from hsnet.benchmarks import load_benchmark
from hsnet.engine import predictor
from hsnet.episodes import EpisodeDataset, test_episodes
from hsnet.runs import save_model
from hsnet.windows import DETAIL, LEAST, resized, window


def test_a_window_has_the_image_s_aspect_and_contains_the_object():
    rng = np.random.default_rng(0)
    for place in 10 * [(0.5, 0.5), (0.0, 0.0), (1.0, 1.0)]:
        mask, margin = torch.zeros(90, 120, dtype=torch.bool), rng.uniform(1, 3)
        top, left, h, w = rng.integers((0, 0, 1, 1), (60, 90, 30, 30)).tolist()
        mask[top : top + h, left : left + w] = True
        y, x, height, width = window(mask, margin, place)
        assert mask[y : y + height, x : x + width].sum() == h * w
        share = margin * max(h / 90, w / 120)
        expected = 1 if share > 0.9 else max(LEAST, share)
        assert (height / 90, width / 120) == pytest.approx((expected, expected), abs=0.01)
    assert window(torch.zeros(30, 40, dtype=torch.bool), 2.0) == (0, 0, 30, 40)


@pytest.fixture
def model():
    model = HSNet("efficientnet_lite0", pretrained=False, levels=1).eval()
    with torch.no_grad():  # a few positions stand out
        list(model.decoder.parameters())[-2].mul_(300)
        list(model.decoder.parameters())[-1].copy_(torch.tensor([4.0, -4.0]))
    model.training_size, model.zoom, model.prior, model.thresholds = 64, True, 2.0, (0.55, 0.45)
    return model


@pytest.fixture
def batch(model):
    shapes = load_benchmark("shapes", size=64)
    return EpisodeDataset(shapes, 64, test_episodes(shapes, fold=0, shot=2, count=1), detail=DETAIL)[0]


def test_the_second_pass_replaces_the_window_of_the_query(model, batch):
    assert (batch.query.shape, batch.query_mask.shape) == ((1, 3, 64 * DETAIL, 64 * DETAIL), (1, 64, 64))
    assert [zooms(model, Config(rule=rule, size=64)) for rule in ("mean", "paper")] == [True, False]
    supports = prepare_supports(model, batch.support, batch.support_mask, 64, zoom=True)
    assert [(side, masks.shape) for side, _, masks in supports] == [(s, (1, 2, s, s)) for s in (64, 90)]
    assert (supports[0][2].float().mean((2, 3)) > 1.5 * batch.support_mask.float().mean((2, 3))).all()
    first, contrast = mean_maps(model, batch.query, supports, (64, 64), zoom=False)
    maps, _ = mean_maps(model, batch.query, supports, (64, 64), zoom=True)
    found = with_prior(first.mean(1), contrast, PRIOR)[0]
    top, left, height, width = window(found > FOUND * found.max(), QUERY_MARGIN)
    assert height < 64
    inside = torch.zeros(64, 64, dtype=torch.bool)
    inside[top : top + height, left : left + width] = True
    assert torch.equal(maps[..., ~inside], first[..., ~inside])
    cut = resized(batch.query, tuple(DETAIL * value for value in (top, left, height, width)), 64)
    expected, _ = mean_maps(model, cut, supports[:1], (height, width), zoom=False)
    assert torch.equal(maps[..., inside], expected.flatten(2))


def test_a_test_and_a_segmenter_compute_the_same(model, batch, tmp_path):
    save_model(tmp_path / "model.safetensors", model)
    (query,) = batch.query.permute(0, 2, 3, 1).numpy()
    supports = list(batch.support[0].permute(0, 2, 3, 1).numpy())
    segmenter = Segmenter(tmp_path).fit(supports, list(batch.support_mask[0].numpy()))
    truth = torch.zeros(1, *query.shape[:2], dtype=torch.bool)  # the masks have its size
    batch = replace(batch, query_mask=truth, query_objects=truth, ignored=truth)
    tested = predictor(HSNet.from_run(tmp_path), torch.device("cpu"), rule="mean", zoom=True)(batch)["HSNet"][0].numpy()
    assert np.array_equal(tested, segmenter.predict(query))
    assert [segmenter.zoom, Segmenter(tmp_path, size=64).zoom] == [True, False]
