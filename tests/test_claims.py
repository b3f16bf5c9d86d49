"""The paper's claims on the embedded benchmark: the rule of the verdicts, by hand, and the way from a run's files to a line."""

import json

import numpy as np
import pytest
from conftest import table_rows
from helpers import scored
from kit import claims

from hsnet import HSNet
from hsnet.benchmarks.shapes import Shapes
from hsnet.config import Config
from hsnet.episodes import test_episodes
from hsnet.reproduce.experiments import claims as claimed_runs


@pytest.mark.parametrize(
    ("differences", "intervals", "spread", "expected"),
    [
        ([3.0, 2.0], [(1.0, 5.0), (0.5, 4.0)], 1.5, "holds"),
        ([3.0, 2.0], [(1.0, 5.0), (-0.5, 4.0)], 1.5, "too close to call"),  # one interval holds 0
        ([3.0, 1.0], [(1.0, 5.0), (0.5, 2.0)], 1.5, "too close to call"),  # one is within the spread over seeds
        ([3.0, -2.0], [(1.0, 5.0), (-4.0, -1.0)], 1.0, "too close to call"),  # the folds disagree
        ([-3.0, -2.0], [(-5.0, -1.0), (-4.0, -1.0)], 1.0, "does not hold here"),
    ],
)
def test_verdict(differences, intervals, spread, expected):
    assert claims.verdict(differences, intervals, spread) == expected


def test_the_runs_have_one_budget_and_differ_in_what_is_claimed():
    runs = claimed_runs()
    assert len({experiment.config.run for experiment in runs}) == len(runs)
    budgets = {(c.config.epochs * c.config.epoch_episodes, c.config.size, c.config.minutes) for c in runs}
    assert budgets == {(6400, 288, 0)}
    assert {c.config.fold for c in runs} == {0, 1}
    published = [c for c in runs if not c.variant]
    assert sorted((c.config.fold, c.config.seed) for c in published) == [(0, 0), (0, 1), (1, 0), (1, 1)]


def write(experiment, scores):
    """A run's files as training leaves them: each predictor's share of the union that it finds, 40 episodes of 4 classes."""
    experiment.folder.mkdir(parents=True)
    experiment.config.save(experiment.folder / "config.json")
    rng = np.random.default_rng(0)
    unions = rng.integers(80, 120, 40).tolist()
    areas = {
        who: [[i % 4, 900, int(u * (share + 0.02 * rng.standard_normal())), 920, u] for i, u in enumerate(unions)]
        for who, share in scores.items()
    }
    about = {"areas": areas, "parameters": 1234, "device": "a GPU", "precision": "float32"}
    test = scored(1, episodes=1000, HSNet=100 * scores["HSNet"]) | about
    (experiment.folder / "test-1shot.json").write_text(json.dumps(test))
    line = {"epoch": 8, "val_miou": 50.0, "seconds": 1200.0, "peak_bytes": 2_000_000_000}
    (experiment.folder / "history.jsonl").write_text((json.dumps(line) + "\n") * 8)


def test_a_line_is_made_from_files_and_waits_for_all_of_them():
    claim = "support features masked above not masked"

    def line():
        return next(row for row in table_rows(claims.verdicts_table(claims.findings())) if row[1] == claim)

    def shown():
        return claims.marks(claims.findings())[f"2  {claim}"]

    assert line()[2:] == ["–", "–", "–"]
    assert shown() == ([], "")
    assert claims.progress().startswith("0 of 24 runs are done. `python -m")
    counts = table_rows(claims.counts_table(claims.findings()))[1:]
    assert {row[-1] for row in counts} == {"11", "6", "10"}  # none was run
    for experiment in (c for c in claimed_runs() if not c.variant):
        write(experiment, {"HSNet": 0.5 + 0.01 * experiment.config.seed, "prototypes": 0.3})
    blind = [c for c in claimed_runs() if c.variant == "no support masking"]
    write(blind[0], {"HSNet": 0.4, "prototypes": 0.3})
    assert line()[3:] == ["–", "–"]  # never a verdict from one fold
    assert [fold for fold, _, _ in shown()[0]] == [0]
    assert shown()[1] == ""
    assert claims.seed_spread() == pytest.approx(1.0)
    write(blind[1], {"HSNet": 0.45, "prototypes": 0.3})
    # Two pairs of seeds that differ by a point leave a deviation of 4.4 plausible: five points are not twice as much.
    assert claims.seed_deviation() == pytest.approx((2 / 0.10259) ** 0.5, rel=1e-4)
    assert (line()[4], shown()[1]) == ("holds, provisional", "holds")
    assert [round(difference) for _, difference, _ in shown()[0]] == [10, 5]
    # HSNet is above the prototypes, too; for the other comparisons nothing was measured.
    assert claims.progress().startswith("6 of 24 runs are done.")
    _, designs, _, prototypes = table_rows(claims.counts_table(claims.findings()))
    assert designs[1:] == ["1", "0", "0", "1", "10"]
    assert prototypes[1:] == ["1", "0", "0", "0", "9"]
    masked = next(row for row in table_rows(claims.ablations_table()) if row[0] == "support features masked")
    assert masked[1] == "+4.7?"
    assert line()[2].startswith("50.0 and 40.0, +10.0 [")
    rows = table_rows(claims.runs_table())
    assert rows[1][3:] == ["50.0 [49.0, 51.0]", "6,400", "20 min", "1,234", "2.00 GB", "a GPU, float32"]
    assert ["separable 4D kernels", *["–"] * 8] in rows


def test_other_backgrounds_change_the_background_alone():
    shapes = Shapes(64)
    name = test_episodes(shapes, fold=0, shot=1, count=1)[0].query
    own, other = shapes.scene(name), claims.on_other_backgrounds(shapes).scene(name)
    assert np.array_equal(own.labels, other.labels)
    assert np.array_equal(own.image[own.labels > 0], other.image[own.labels > 0])
    assert np.abs(own.image[own.labels == 0].astype(int) - other.image[own.labels == 0]).mean() > 20


def test_measurements_beyond_the_tests(monkeypatch):
    monkeypatch.setattr(claims, "EPISODES", 6)
    config = Config(benchmark="shapes", size=64, val_episodes=4, test_episodes=6, workers=0, precision="float32")
    model = HSNet("efficientnet_lite0", pretrained=False).eval()
    shots = claims.measure_shots(model, config, Shapes(64))["scores"]
    assert [(row["shot"], row["rule"]) for row in shots] == [(k, r) for k in claims.SHOTS for r in claims.RULES]
    assert {row["episodes"] for row in shots} == {6}
    assert shots[0]["areas"] == shots[1]["areas"]  # of one support every rule makes the same
    backgrounds = claims.measure_backgrounds(model, config, Shapes(64))["scores"]
    assert [row["who"] for row in backgrounds] == ["HSNet", "prototypes"] * 2
    assert backgrounds[0]["areas"] != backgrounds[2]["areas"]
    episodes = claims.measure_episodes(model, config, Shapes(64))["episodes"]
    assert len(episodes) == 6
    assert all(0.01 < share < 1 for share, _, _ in episodes)
    assert {n for _, n, _ in episodes} <= {1, 2, 3, 4}
