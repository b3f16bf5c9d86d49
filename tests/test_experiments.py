"""Which trainings and tests stand behind the paper's tables, how far they are, and how they are set beside the paper's."""

import dataclasses
import json
from collections import Counter

import pytest
from conftest import table_rows
from helpers import scored
from kit import tables

from hsnet.backbone import backbone_row
from hsnet.config import TEST_LISTS, Config, paper
from hsnet.reproduce import experiments, report
from hsnet.reproduce.experiments import OF_PAPER, experiments_of, only, state, trainings


def every(protocol="official"):
    return [one for name in OF_PAPER for one in experiments_of(name, protocol)]


def test_every_number_of_the_paper_has_its_experiments():
    counts = {name: len(experiments_of(name)) for name in OF_PAPER}
    assert counts == {"pascal": 12, "coco": 8, "fss": 3, "coco-to-pascal": 8, "ten-shot": 8, "ablations": 44}
    assert len(trainings(every())) == 12 + 8 + 3 + 10 * 4
    there = {(c.benchmark, backbone_row(c.config.backbone).title, c.variant, str(s)) for c in every() for s in c.shots}
    printed = {(r["benchmark"], r["backbone"], r["variant"], r["shot"]) for r in experiments.read_paper("results")}
    assert printed <= there


@pytest.mark.parametrize("protocol", TEST_LISTS)
def test_a_runs_name_stands_for_one_setting(protocol):
    found: dict[str, Config] = {}
    for one in every(protocol):
        assert found.setdefault(one.config.run, one.config) == one.config
    assert not {c.config.run for c in every("official")} & {c.config.run for c in every("strict")}


def test_experiments_have_the_papers_settings():
    for one in experiments_of("pascal"):
        assert one.config == paper("pascal", one.config.backbone, one.config.fold)
    ablations = experiments_of("ablations")
    for one in ablations:
        plain = dataclasses.asdict(paper("pascal", "resnet101", one.config.fold))
        differing = {name for name, value in dataclasses.asdict(one.config).items() if value != plain[name]}
        assert differing == ({*experiments.ABLATIONS[one.variant], "name"} if one.variant else set())
    assert set(Counter(one.variant for one in ablations).values()) == {4}


def test_strict_is_three_trainings_a_fold():
    strict = experiments_of("pascal", "strict")
    assert strict[0].kinds == [(False, False), (True, False), (False, True), (True, True)]
    assert Counter(one.config.seed for one in strict) == {0: 12, 1: 12, 2: 12}
    assert {one.config.protocol for one in strict} == {"strict"}
    assert "PASCAL-5i, ResNet-50, seed 2" in {one.row for one in strict}


def test_only():
    tables = {name: experiments_of(name) for name in ("pascal", "ablations")}
    assert set(only(tables, "resnet50")) == {"pascal"}
    (one,) = only(tables, "resnet50,2")["pascal"]
    assert (one.config.backbone, one.config.fold) == ("resnet50", 2)
    assert len(only(tables, "0, 1")["pascal"]) == 6
    assert only(tables, "") == tables
    with pytest.raises(ValueError, match="no 'resnet18' here; choose of 0, 1, 2, 3, resnet101, resnet50, vgg16"):
        only(tables, "resnet18,0")


def write_test(folder, shot, miou=60.0, episodes=1000, before="", **more):
    folder.mkdir(parents=True, exist_ok=True)
    content = scored(shot, episodes, HSNet=miou) | more
    (folder / f"{before}test-{shot}shot.json").write_text(json.dumps(content))


def begin(experiment, epochs=0):
    experiment.folder.mkdir(parents=True, exist_ok=True)
    experiment.config.save(experiment.folder / "config.json")
    line = json.dumps({"epoch": 1, "val_miou": 50.0, "seconds": 3600.0})
    (experiment.folder / "history.jsonl").write_text(f"{line}\n" * epochs)


def finish(experiment, best=60.0, last=59.0, **more):
    begin(experiment, 3)
    before = f"{experiment.tested_on}-fold{experiment.config.fold}-" if experiment.tested_on else ""
    for folder, miou in ((experiment.folder, best), (experiment.folder / experiments.LAST_EPOCH, last)):
        for shot in experiment.shots:
            write_test(folder, shot, miou + shot, before=before, **more)


def test_how_far_an_experiment_is():
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


def test_where_a_run_is_computed_does_not_matter():
    experiment = experiments_of("pascal")[0]
    begin(experiment)
    dataclasses.replace(experiment.config, workers=3, root="/elsewhere").save(experiment.folder / "config.json")
    assert state(experiment).kind == "cut"
    dataclasses.replace(experiment.config, batch=4).save(experiment.folder / "config.json")
    assert (state(experiment).kind, state(experiment).text) == ("other settings", "batch 4, not 20")


def test_the_state_of_all_experiments():
    rows = table_rows(report.experiments_table())
    assert rows[2] == ["pascal", "PASCAL-5i, ResNet-50", *["missing"] * 4, "768"]
    total = (12 + 40) * 192 + 8 * 672 + 3 * 288
    assert rows[-1][-1] == f"{total:,}"
    finish(experiments_of("pascal")[4])
    begin(experiments_of("pascal")[5], 9)
    rows = table_rows(report.experiments_table())
    assert rows[2] == ["pascal", "PASCAL-5i, ResNet-50", "done", "cut 9", "missing", "missing", "576"]
    assert rows[-1][-1] == f"{total - 192:,}"
    assert next(r for r in rows if r[0] == "ten-shot")[2:] == ["cut 3", "cut 9", "missing", "missing", "above"]
    assert len(table_rows(report.experiments_table(["pascal"], words="resnet50"))) == 3


def test_the_paper_beside_ours():
    rows = table_rows(report.paper_and_ours("pascal"))
    assert rows[3] == ["PASCAL-5i, ResNet-50", "1", "paper", "64.3", "70.7", "60.3", "60.5", "64.0", "76.7"]
    assert {row[2] for row in rows[1:]} == {"paper"}  # no line for what was not run
    assert not [r for r in table_rows(report.paper_and_ours("ablations")) if "separable" in r[0]]  # nor printed
    assert rows[1][-1] == "73.4 ?"  # unconfirmed
    pascal = [c for c in experiments_of("pascal") if c.config.backbone == "resnet50"]
    for k, one in enumerate(pascal[:2]):
        finish(one, best=60.0 + k)
    rows = table_rows(report.paper_and_ours("pascal"))
    assert rows[4][2:] == ["ours, best epoch", "61.0", "62.0", *["–"] * 2, *["– (2/4)"] * 2]  # no mean over some folds
    assert rows[5][2:] == ["ours, last epoch", "60.0", "60.0", "–", "–", "– (2/4)", "– (2/4)"]
    for k, one in enumerate(pascal):
        finish(one, best=60.0 + k, source={"source": "ours", "crowd": True}, rule="paper")
    text = report.paper_and_ours("pascal")
    assert table_rows(text)[4][2:] == ["ours, best epoch", "61.0", "62.0", "63.0", "64.0", "62.5", "72.5"]
    assert "Not run: PASCAL-5i, VGG-16, 1-shot; PASCAL-5i, VGG-16, 5-shot; PASCAL-5i, ResNet-101, 1-shot;" in text
    assert "Ours: PASCAL-5i: crowd True, protocol official, rule paper, size 400, source ours." in text
    summary = table_rows(tables.summary_table())
    assert summary[2] == ["PASCAL-5i, ResNet-50", "64.0", "62.5", "69.5", "66.5"]
    assert summary[3] == ["PASCAL-5i, ResNet-101", "66.2", "–", "70.4", "–"]


def test_two_protocols_never_share_a_table():
    official, other = experiments_of("pascal")[:2]
    finish(official)
    finish(other, protocol="strict")
    for table in (lambda: report.paper_and_ours("pascal"), tables.summary_table):
        with pytest.raises(ValueError, match="cannot be in one table"):
            table()
    assert not [row for row in table_rows(report.paper_and_ours("pascal", "strict")) if row[2] == "paper"]


def test_coco_to_pascal_is_a_test_of_cocos_runs():
    experiment, coco = (experiments_of(name)[0] for name in ("coco-to-pascal", "coco"))
    assert experiment.config == coco.config
    finish(coco)
    assert (state(coco).kind, state(experiment).kind) == ("done", "cut")
    finish(experiment)
    assert state(experiment).kind == "done"
    assert table_rows(report.paper_and_ours("coco-to-pascal"))[2][2:5] == ["ours, best epoch", "61.0", "–"]
