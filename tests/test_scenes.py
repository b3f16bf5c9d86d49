"""The scenes of the drawn benchmarks are those that runs were scored on: their pixels, whatever the code that draws them."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from helpers import names

from hsnet.benchmarks import load_benchmark
from hsnet.episodes import test_episodes
from hsnet.paths import ROOT

GOLDEN = Path(__file__).parent / "golden" / "scenes.json"
GRID = 4  # parts a side, whose mean colours stand for the pixels: renderers may round them by a level
DRAWN = ("emoji", "shapes")


def fingerprint(scene):
    """The mean RGB of GRID × GRID parts of the image, and the area of each object in pixels."""
    side = len(scene.image) // GRID
    means = scene.image.reshape(GRID, side, GRID, side, 3).mean((1, 3)).flatten()
    return {"colours": means.round(1).tolist(), "areas": np.bincount(scene.labels.flatten()).tolist()}


def scenes(benchmark):
    """A few dozen scene names: the queries and supports of test episodes, and of training episodes."""
    rng = np.random.default_rng(0)
    drawn = [benchmark.draw(rng, fold) for fold in (0, 1, 2, 3) for _ in range(3)]
    return [n for e in [*test_episodes(benchmark, fold=0, shot=1, count=8), *drawn] for n in names(e)]


@pytest.mark.parametrize("name", DRAWN)
def test_scenes_have_the_pixels_that_runs_were_scored_on(name, monkeypatch):
    monkeypatch.setenv("HSNET_DATA", str(ROOT / "data"))  # the drawings, which the notebooks need too
    try:
        benchmark = load_benchmark(name, size=256)
    except ConnectionError as error:
        pytest.skip(f"the drawings cannot be fetched: {error}")
    found = {n: fingerprint(benchmark.scene(n)) for n in scenes(benchmark)}
    if os.environ.get("HSNET_GOLDEN") == "write":  # after raising the benchmark's `scenes_version`
        stored = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
        GOLDEN.write_text(json.dumps(stored | {name: found}, indent=0) + "\n")
    expected = json.loads(GOLDEN.read_text())[name]
    assert list(found) == list(expected)
    for scene, values in found.items():
        assert len(values["areas"]) == len(expected[scene]["areas"]), scene
        np.testing.assert_allclose(values["colours"], expected[scene]["colours"], atol=1.0, err_msg=scene)
        np.testing.assert_allclose(values["areas"], expected[scene]["areas"], atol=30, err_msg=scene)
