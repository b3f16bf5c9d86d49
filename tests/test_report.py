"""Tables are made from files, and refuse to mix what cannot be compared."""

import numpy as np
import pytest
from conftest import table_rows
from helpers import scored
from kit import photographs, tables
from kit.pages import other_episodes, run_score

from hsnet import runs
from hsnet.benchmarks import load_benchmark
from hsnet.episodes import test_episodes
from hsnet.paths import ROOT
from hsnet.reproduce.experiments import read_paper


def test_tables():
    table = runs.scores_table([scored(1, HSNet=50.04, prototypes=40.0), scored(5, HSNet=55.0)])
    lines = table_rows(table)
    assert lines[1] == ["HSNet", "50.0 [49.0, 51.0]", "60.0", "55.0 [54.0, 56.0]", "65.0"]
    assert lines[2] == ["prototypes", "40.0 [39.0, 41.0]", "50.0", "–", "–"]
    with pytest.raises(ValueError, match=r"different test scenes \(digests a, b\)"):
        runs.scores_table([scored(1, HSNet=1.0), scored(5, HSNet=1.0) | {"digest": "b"}])


def test_rendering_fills_the_marked_places(run):
    text = "before\n<!-- run one -->\nold\n<!-- end -->\nafter <!-- run two -->\n<!-- end -->"
    assert "–" in tables.render(text)
    runs.write_json(run / "test-1shot.json", scored(1, HSNet=50.0))
    rendered = tables.render(text)
    assert "50.0 [49.0, 51.0]" in rendered
    assert "old" not in rendered
    assert tables.render(rendered) == rendered


def test_the_score_of_a_runs_first_episodes(run):
    rows = [[3, 0, 10, 90, 40], [5, 0, 30, 90, 40], [3, 0, 40, 90, 40]]
    runs.write_json(run / "test-1shot.json", {"areas": {"HSNet": rows}, "resample_classes": True})
    assert run_score("one").miou() == pytest.approx((100 * 50 / 80 + 75) / 2)
    assert run_score("one", count=2).miou() == pytest.approx((25 + 75) / 2)
    with pytest.raises(FileNotFoundError, match="evaluate one --shot 5"):
        run_score("one", shot=5)


def test_the_same_query_has_episodes_of_its_other_objects():
    shapes = load_benchmark("shapes", size=64)
    episodes = test_episodes(shapes, fold=0, shot=1, count=20)
    pairs = [(e, other) for e in episodes for other in other_episodes(shapes, e)]
    assert len(pairs) > 10
    for episode, other in pairs:
        assert other.query == episode.query
        assert other.class_id != episode.class_id
        artist = dict(shapes.objects(other.query))[other.class_id]
        assert other.supports[0].split(".")[3] != artist
        assert shapes.read(other.supports[0], other.class_id).mask.any()


def test_the_papers_means_are_those_of_its_folds():
    rows = read_paper("results")
    assert all(row["sources"] == "unconfirmed" or int(row["sources"]) >= 1 for row in rows)
    found: dict[tuple, dict[str, float]] = {}
    for row in rows:
        values = found.setdefault((row["benchmark"], row["backbone"], row["variant"], row["shot"]), {})
        assert values.setdefault(row["what"], row["value"]) is row["value"]  # none twice
    in_folds = [values for values in found.values() if "fold 0" in values]
    assert len(in_folds) == 11
    for values in in_folds:
        mean = sum(float(values[f"fold {f}"]) for f in range(4)) / 4
        assert float(values["mean"]) == pytest.approx(mean, abs=0.1)
    table = table_rows(tables.paper_table())
    assert ["PASCAL-5i", "ResNet-101", "66.2 [7]", "70.4 [5]"] in table
    assert not [row for row in table if row[0] == "FSS-1000" and row[1] == "VGG-16"]  # not confirmed
    assert table_rows(tables.paper_kernels_table())[-1][:2] == ["center-pivot 4D", "25.51 ms"]


def test_networks_and_results(run):
    (run.parent / "networks.csv").write_text("run,network,computed on\none,the first,a CPU\ntwo,not there,a CPU\n")
    runs.write_json(run / "config.json", {"start": "", "size": 256, "epoch_episodes": 2000})
    (run / "history.jsonl").write_text('{"seconds": 60.0}\n{"seconds": 121.0}\n')
    runs.write_json(run / "test-1shot.json", scored(1, HSNet=50.0, prototypes=30.0))
    rows = table_rows(tables.networks_table())
    assert rows[1:] == [["`one`", "the first", "–", "256", "4,000", "2", "a CPU", "50.0 [49.0, 51.0]"]]
    rows = table_rows(tables.results_table("one,two"))
    assert rows[1:] == [["`one`", "50.0 [49.0, 51.0]", "30.0 [29.0, 31.0]", "–", "–"], ["`two`", *"––––"]]


def test_photographs_are_scored_by_object_size_and_beside_the_prototypes(run):
    rng = np.random.default_rng(0)
    pixels, objects = 10_000, np.array([100, 600, 2000, 5000] * 10)

    def areas(iou):
        """Masks inside the object that cover so much of it."""
        found = (objects * iou).astype(int)
        rows = zip(np.arange(40) % 2, pixels - objects, found, pixels - found, objects, strict=True)
        return [list(map(int, row)) for row in rows]

    everything = [[int(i % 2), 0, int(o), pixels - int(o), pixels] for i, o in enumerate(objects)]
    for shot in (1, 5):
        content = {"HSNet": areas(0.6), "prototypes": areas(0.3), "all foreground": everything}
        runs.write_json(run / f"test-{shot}shot.json", {"areas": content, "size": 288})
        if shot == 1:
            with pytest.raises(FileNotFoundError, match=r"hsnet\.evaluate one --shot 1 --size 400"):
                photographs.scores_table("one")
        content = {"HSNet": areas(rng.random()), "prototypes": areas(0.4), "all foreground": everything}
        runs.write_json(run / f"400px-test-{shot}shot.json", {"areas": content, "size": 400})
    header, *rows = table_rows(photographs.scores_table("one"))
    assert header == ["supports", "HSNet", "prototypes, 288 px", "prototypes, 400 px", "lead over the better"]
    assert [row[1].split()[0] for row in rows[-2:]] == ["60.0", "60.0"]
    assert rows[-1][-1].startswith("+20.0 [20.0")
    rows = table_rows(photographs.sizes_table("one"))[-8:]
    assert [row[2] for row in rows] == ["10"] * 8
    assert rows[0][3:] == ["60.0", "40.0", "100 %", "0 %"]


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_rendered_is_up_to_date(page, monkeypatch):
    if (ROOT / "data" / "runs" / "emoji-fold0-efficientnet_lite0" / "last.pt").exists():
        pytest.skip("`make train` has replaced the scores that the tables show")
    monkeypatch.delenv("HSNET_DATA")
    assert tables.render(page.read_text()) == page.read_text(), (
        "write it anew with `PYTHONPATH=book python -m kit.tables`"
    )
