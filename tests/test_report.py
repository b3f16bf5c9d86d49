"""Tables are made from files, and refuse to mix what cannot be compared."""

import json
import re

import pytest
from conftest import table_rows
from kit import tables
from kit.pages import run_score

from hsnet import runs
from hsnet.benchmarks import load_benchmark
from hsnet.episodes import test_episodes
from hsnet.paths import ROOT
from hsnet.reproduce.experiments import read_paper


def test(shot, digest="a", **scores):
    return {
        "shot": shot,
        "digest": digest,
        "scores": {name: {"miou": v, "interval": [v - 1, v + 1], "fb_iou": 60.0} for name, v in scores.items()},
    }


test.__test__ = False


def test_tables():
    table = runs.scores_table([test(1, HSNet=50.04, prototypes=40.0), test(5, HSNet=55.0)])
    lines = table_rows(table)
    assert lines[1] == ["HSNet", "50.0 [49.0, 51.0]", "60.0", "55.0 [54.0, 56.0]", "60.0"]
    assert lines[2] == ["prototypes", "40.0 [39.0, 41.0]", "60.0", "–", "–"]
    with pytest.raises(ValueError, match=r"different test scenes \(digests a, b\)"):
        runs.scores_table([test(1, HSNet=1.0), test(5, digest="b", HSNet=1.0)])


@pytest.fixture
def folder(data):
    path = data / "runs" / "one"
    path.mkdir(parents=True)
    return path


def test_rendering_fills_the_marked_places(folder):
    text = "before\n<!-- run one -->\nold\n<!-- end -->\nafter <!-- run two -->\n<!-- end -->"
    assert "–" in tables.render(text)
    runs.write_json(folder / "test-1shot.json", test(1, HSNet=50.0))
    rendered = tables.render(text)
    assert "50.0 [49.0, 51.0]" in rendered
    assert "old" not in rendered
    assert tables.render(rendered) == rendered


def test_the_score_of_a_runs_first_episodes(folder):
    rows = [[3, 0, 10, 90, 40], [5, 0, 30, 90, 40], [3, 0, 40, 90, 40]]
    runs.write_json(folder / "test-1shot.json", {"areas": {"HSNet": rows}, "resample_classes": True})
    assert run_score("one").miou() == pytest.approx((100 * 50 / 80 + 75) / 2)
    assert run_score("one", count=2).miou() == pytest.approx((25 + 75) / 2)
    with pytest.raises(FileNotFoundError, match="evaluate one --shot 5"):
        run_score("one", shot=5)


def test_json_is_readable_and_whole(data):
    content = {"a": [[1, 2], [3, 4]], "b": {"c": [1.5, None]}, "d": [], "e": "é"}
    runs.write_json(data / "x.json", content)
    assert json.loads((data / "x.json").read_text()) == content
    assert "[1, 2],\n" in (data / "x.json").read_text()
    assert not list(data.glob("*.tmp"))


def test_no_runs(data):
    assert "`make train` trains one" in runs.runs_table()


def test_the_same_query_is_asked_for_its_other_objects():
    shapes = load_benchmark("shapes", size=64)
    episodes = test_episodes(shapes, fold=0, shot=1, count=20)
    asked = [(e, other) for e in episodes for other in shapes.other_questions(e)]
    assert len(asked) > 10
    for episode, other in asked:
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


def test_networks_and_results(folder):
    (folder.parent / "networks.csv").write_text("run,network,computed on\none,the first,a CPU\ntwo,not there,a CPU\n")
    runs.write_json(folder / "config.json", {"start": "", "size": 256, "epoch_episodes": 2000})
    (folder / "history.jsonl").write_text('{"seconds": 60.0}\n{"seconds": 121.0}\n')
    runs.write_json(folder / "test-1shot.json", test(1, HSNet=50.0, prototypes=30.0))
    rows = table_rows(tables.networks_table())
    assert rows[1:] == [["`one`", "the first", "–", "256", "4,000", "2", "a CPU", "50.0 [49.0, 51.0]"]]
    rows = table_rows(tables.results_table("one,two"))
    assert rows[1:] == [["`one`", "50.0 [49.0, 51.0]", "30.0 [29.0, 31.0]", "–", "–"], ["`two`", *"––––"]]


@pytest.mark.parametrize(
    "page", [page for page in tables.PAGES if "runs" not in page.parts], ids=lambda page: page.stem
)
def test_no_number_is_typed_in_a_table(page):
    text = re.sub(r"<!-- \S+ \S+ -->\n.*?<!-- end -->", "", page.read_text(), flags=re.DOTALL)
    rows = [line for line in text.splitlines() if re.match(r"\s*\|.*\|", line)]
    typed = [row for row in rows if re.search(r"\d+\.\d", re.sub(r"`[^`]*`", "", row))]
    assert not typed, "render these from a file: " + "\n".join(typed)


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_rendered_is_up_to_date(page, monkeypatch):
    monkeypatch.delenv("HSNET_DATA")
    assert tables.render(page.read_text()) == page.read_text(), (
        "write it anew with `PYTHONPATH=book python -m kit.tables`"
    )
