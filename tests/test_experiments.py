"""Which trainings and tests stand behind the paper's tables, how far they are, and how they are set beside the paper's."""

import dataclasses
import json
from collections import Counter

import pytest
from conftest import table_rows

from hsnet.config import TEST_LISTS, Config, paper
from hsnet.reproduce import experiments, report
from hsnet.reproduce.experiments import OF_PAPER, Experiment, experiments_of, only, state, trainings


def every(protocol="official"):
    return [experiment for name in OF_PAPER for experiment in experiments_of(name, protocol)]


def test_every_number_of_the_paper_has_its_cells():
    counts = {name: len(experiments_of(name)) for name in OF_PAPER}
    assert counts == {"pascal": 12, "coco": 8, "fss": 3, "coco-to-pascal": 8, "ten-shot": 8, "ablations": 44}
    assert len(trainings(every())) == 12 + 8 + 3 + 10 * 4
    there = {
        (c.benchmark, experiments.BACKBONES[c.config.backbone], c.variant, str(s)) for c in every() for s in c.shots
    }
    printed = {(r["benchmark"], r["backbone"], r["variant"], r["shot"]) for r in experiments.read_paper("results")}
    assert printed <= there


@pytest.mark.parametrize("protocol", TEST_LISTS)
def test_a_runs_name_stands_for_one_setting(protocol):
    found: dict[str, Config] = {}
    for experiment in every(protocol):
        assert found.setdefault(experiment.config.run, experiment.config) == experiment.config
    assert not {c.config.run for c in every("official")} & {c.config.run for c in every("strict")}


def test_cells_are_the_papers_settings():
    for experiment in experiments_of("pascal"):
        assert experiment.config == paper("pascal", experiment.config.backbone, experiment.config.fold)
    differ = Counter()
    for experiment in experiments_of("ablations"):
        plain = paper("pascal", "resnet101", experiment.config.fold)
        names = [
            f.name for f in dataclasses.fields(Config) if getattr(experiment.config, f.name) != getattr(plain, f.name)
        ]
        assert set(names) == (
            set(experiments.ABLATIONS[experiment.variant]) | {"name"} if experiment.variant else set()
        )
        differ[experiment.variant] += 1
    assert set(differ.values()) == {4}


def test_a_training_without_a_name_is_the_cells(data):
    assert experiments_of("pascal")[4].config.run == paper("pascal", "resnet50", 0).run


def test_strict_is_three_trainings_a_cell():
    strict = experiments_of("pascal", "strict")
    assert strict[0].kinds == [(False, False), (True, False), (False, True), (True, True)]
    assert Counter(experiment.config.seed for experiment in strict) == {0: 12, 1: 12, 2: 12}
    assert {experiment.config.protocol for experiment in strict} == {"strict"}
    assert "PASCAL-5i, ResNet-50, seed 2" in {experiment.row for experiment in strict}


def test_only():
    tables = {name: experiments_of(name) for name in ("pascal", "ablations")}
    assert [c.config.fold for c in only(tables, "resnet50")["pascal"]] == [0, 1, 2, 3]
    assert set(only(tables, "resnet50")) == {"pascal"}
    (one,) = only(tables, "resnet50,2")["pascal"]
    assert (one.config.backbone, one.config.fold) == ("resnet50", 2)
    assert len(only(tables, "0, 1")["pascal"]) == 6
    assert only(tables, "") == tables
    with pytest.raises(
        ValueError, match=r"no 'resnet18' here; name backbones \(resnet101, .* and folds \(0, 1, 2, 3\)"
    ):
        only(tables, "resnet18,0")
    with pytest.raises(ValueError, match="no table 'voc': choose one of pascal, coco"):
        experiments_of("voc")


def write_test(folder, shot, miou=60.0, episodes=1000, name="test-{}shot.json", **more):
    folder.mkdir(parents=True, exist_ok=True)
    score = {"miou": miou, "fb_iou": miou + 10, "interval": [miou - 1, miou + 1], "episodes": episodes}
    content = {"shot": shot, "protocol": "official", "size": 400, "digest": "d", "scores": {"HSNet": score}, **more}
    (folder / name.format(shot)).write_text(json.dumps(content))


def begin(experiment, epochs=0):
    experiment.folder.mkdir(parents=True)
    experiment.config.save(experiment.folder / "config.json")
    lines = [json.dumps({"epoch": e + 1, "val_miou": 50.0, "seconds": 3600.0 * (e + 1)}) for e in range(epochs)]
    (experiment.folder / "history.jsonl").write_text("".join(line + "\n" for line in lines))


def finish(experiment, best=60.0, last=59.0, **more):
    if not experiment.folder.exists():
        begin(experiment, 3)
    before = f"{experiment.tested_on}-fold{experiment.config.fold}-" if experiment.tested_on else ""
    for shot in experiment.shots:
        write_test(experiment.folder, shot, best + shot, name=before + "test-{}shot.json", **more)
        write_test(
            experiment.folder / experiments.LAST_EPOCH, shot, last + shot, name=before + "test-{}shot.json", **more
        )


def test_how_far_a_cell_is(data):
    experiment = experiments_of("pascal")[4]
    assert str(state(experiment)) == "missing"
    begin(experiment, epochs=7)
    assert str(state(experiment)) == "cut 7"
    write_test(experiment.folder, 1)
    write_test(experiment.folder, 5, episodes=333)  # what a training ends with: not all of them
    assert state(experiment).kind == "cut"
    write_test(experiment.folder, 5)
    assert state(experiment).kind == "cut"  # the last epoch's weights are not tested
    for shot in (1, 5):
        write_test(experiment.folder / experiments.LAST_EPOCH, shot)
    assert state(experiment).kind == "done"
    ten = next(c for c in experiments_of("ten-shot") if c.config == experiment.config)
    assert state(ten).kind == "cut"  # trained, but not tested with ten supports


def test_a_cell_at_work_and_one_of_other_settings(data, monkeypatch):
    experiment = experiments_of("pascal")[0]
    begin(experiment, epochs=2)
    monkeypatch.setattr(
        experiments, "lock_holder", lambda folder: "process 7 on somewhere" if folder == experiment.folder else None
    )
    assert str(state(experiment)) == "running 2"
    assert state(experiment).text == "process 7 on somewhere"
    monkeypatch.undo()
    monkeypatch.setenv("HSNET_DATA", str(data))
    dataclasses.replace(experiment.config, workers=3, root="/elsewhere").save(experiment.folder / "config.json")
    assert state(experiment).kind == "cut"  # where it is computed does not matter
    dataclasses.replace(experiment.config, batch=4).save(experiment.folder / "config.json")
    assert str(state(experiment)) == "other settings"
    assert state(experiment).text == "batch 4, not 20"


def test_what_a_training_is_expected_to_cost():
    hours = {name: experiments.expected_hours(paper(name)) for name in ("pascal", "coco", "fss")}
    assert hours == {"pascal": 2 * 24 * 4, "coco": 7 * 24 * 4, "fss": 3 * 24 * 4}
    assert experiments.expected_hours(Config(minutes=30.0)) == 0.5
    assert experiments.expected_bytes(paper("pascal")) == 4 * 10 * 2_573_794
    dense = next(experiment for experiment in experiments_of("ablations") if experiment.config.kernel == "dense")
    assert experiments.expected_bytes(dense.config) > 4 * experiments.expected_bytes(paper("pascal"))


def test_the_state_of_all_cells(data):
    rows = table_rows(report.experiments_table())
    assert rows[0] == ["table", "row", "fold 0", "fold 1", "fold 2", "fold 3", "GPU hours", "disk"]
    assert rows[2][:7] == ["pascal", "PASCAL-5i, ResNet-50", *["missing"] * 4, "768"]
    total = (12 + 40) * 192 + 8 * 672 + 3 * 288
    assert rows[-1][-2] == f"{total:,}"
    finish(experiments_of("pascal")[4])
    begin(experiments_of("pascal")[5], 9)
    rows = table_rows(report.experiments_table())
    assert rows[2][:7] == ["pascal", "PASCAL-5i, ResNet-50", "done", "cut 9", "missing", "missing", "576"]
    assert rows[-1][-2] == f"{total - 192:,}"
    assert next(r for r in rows if r[0] == "ten-shot")[2:] == ["cut 3", "cut 9", "missing", "missing", "above", "above"]
    assert len(table_rows(report.experiments_table(["pascal"], words="resnet50"))) == 3
    assert "PASCAL-5i 2 days on 4 GPUs" in report.expectation()


def test_the_paper_beside_ours(data):
    assert "Ours: nothing was run yet." in report.paper_and_ours("pascal")
    rows = table_rows(report.paper_and_ours("pascal"))
    assert rows[5] == ["PASCAL-5i, ResNet-50", "1", "paper", "64.3", "70.7", "60.3", "60.5", "64.0", "76.7"]
    assert rows[6] == ["PASCAL-5i, ResNet-50", "1", "ours", *["–"] * 6]
    unprinted = [r for r in table_rows(report.paper_and_ours("ablations")) if "separable" in r[0]]
    assert [r[1:3] for r in unprinted] == [["1", "ours"], ["5", "ours"]]
    assert rows[1][-1] == "73.4 ?"  # unconfirmed
    pascal = [c for c in experiments_of("pascal") if c.config.backbone == "resnet50"]
    for k, experiment in enumerate(pascal[:2]):
        finish(experiment, best=60.0 + k)
    rows = table_rows(report.paper_and_ours("pascal"))
    assert rows[6][2:] == [
        "ours, best epoch",
        "61.0",
        "62.0",
        "–",
        "–",
        "– (2/4)",
        "– (2/4)",
    ]  # no mean over some folds
    assert rows[7][2:] == ["ours, last epoch", "60.0", "60.0", "–", "–", "– (2/4)", "– (2/4)"]
    for k, experiment in enumerate(pascal[2:], 2):
        finish(experiment, best=60.0 + k, source={"source": "ours", "crowd": True})
    with pytest.raises(ValueError, match="must not stand in one table"):
        report.paper_and_ours("pascal")
    for k, experiment in enumerate(pascal):
        finish(experiment, best=60.0 + k, source={"source": "ours", "crowd": True}, rule="paper")
    text = report.paper_and_ours("pascal")
    assert table_rows(text)[6][2:] == ["ours, best epoch", "61.0", "62.0", "63.0", "64.0", "62.5", "72.5"]
    assert "Ours: PASCAL-5i: official protocol, 400 px, masks built here, crowds included, rule: paper." in text
    assert "chosen on the test" in text
    summary = table_rows(report.summary_table())
    assert summary[2] == ["PASCAL-5i, ResNet-50", "64.0", "62.5", "69.5", "66.5"]
    assert summary[3] == ["PASCAL-5i, ResNet-101", "66.2", "–", "70.4", "–"]


def test_two_protocols_never_share_a_table(data):
    official, other = experiments_of("pascal")[:2]
    finish(official)
    finish(other, protocol="strict")
    with pytest.raises(ValueError, match="must not stand in one table"):
        report.paper_and_ours("pascal")
    with pytest.raises(ValueError, match="must not stand in one table"):
        report.summary_table()
    assert not [row for row in table_rows(report.paper_and_ours("pascal", "strict")) if row[2] == "paper"]


def test_coco_to_pascal_is_a_test_of_cocos_runs(data):
    experiment = experiments_of("coco-to-pascal")[0]
    coco = experiments_of("coco")[0]
    assert experiment.config == coco.config
    finish(coco)
    assert state(coco).kind == "done"
    assert state(experiment).kind == "cut"
    finish(experiment)
    assert state(experiment).kind == "done"
    assert table_rows(report.paper_and_ours("coco-to-pascal"))[2][2:5] == ["ours, best epoch", "61.0", "–"]


def test_a_table_is_a_list_of_cells(data, monkeypatch):
    one = Experiment(Config(benchmark="shapes", name="tiny", test_episodes=10), shots=(1,))
    monkeypatch.setitem(experiments.TABLES, "tried", lambda protocol: [one])
    write_test(one.folder, 1, episodes=10)
    assert table_rows(report.paper_and_ours("tried"))[1][:3] == ["shapes, EfficientNet-Lite0", "1", "ours, best epoch"]
    assert table_rows(report.experiments_table(["tried"]))[1][0] == "tried"
