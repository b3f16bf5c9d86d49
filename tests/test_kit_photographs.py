"""How photographs are asked and counted, on a tiny COCO drawn here."""

import json
import sys

import numpy as np
import pytest
from kit import photographs as program
from PIL import Image

from hsnet import HSNet
from hsnet.benchmarks import Sample, load_benchmark
from hsnet.metrics import SegmentationScore
from hsnet.runs import WEIGHTS, save_model

RNG = np.random.default_rng(0)


@pytest.fixture
def root(tmp_path):
    """Three classes of seven, six and two pictures, each with a square of its class."""
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    number = 0
    for split, counts in (("train2017", (4, 3, 2)), ("val2017", (3, 3, 0))):
        (tmp_path / "coco" / split).mkdir()
        images, annotations = [], []
        for category, count in enumerate(counts, start=1):
            for _ in range(count):
                number += 1
                pixels = RNG.integers(0, 256, (60, 80, 3), np.uint8)
                pixels[10:50, 20:60] = 80 * category
                Image.fromarray(pixels).save(tmp_path / "coco" / split / f"{number}.jpg")
                images.append({"id": number, "file_name": f"{number}.jpg", "height": 60, "width": 80})
                box = [20, 10, 60, 10, 60, 50, 20, 50]
                annotations.append(
                    {"id": number, "image_id": number, "category_id": category, "segmentation": [box], "area": 1600,
                     "bbox": [20, 10, 40, 40], "iscrowd": 0}
                )  # fmt: skip
        categories = [{"id": i, "name": f"thing {i}"} for i in range(1, 4)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (tmp_path / "coco" / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return tmp_path / "coco"


def tiny(data, size):
    """The folder of a run called tiny, as if trained at `size`; its weights are drawn at random."""
    model = HSNet("efficientnet_lite0")
    model.training_size = size
    run = data / "runs" / "tiny"
    run.mkdir(parents=True)
    save_model(run / WEIGHTS, model)
    return run


def test_every_picture_is_asked_by_others_of_its_class(root, monkeypatch):
    benchmark = load_benchmark("coco", size=64, root=str(root))
    with pytest.raises(ValueError, match="has 2 classes with more than 5 pictures"):
        program.questions(benchmark)
    monkeypatch.setattr(program, "CLASSES", 2)
    asked, others = program.questions(benchmark)
    assert sorted(q for _, q, _ in asked) == sorted({q for _, q, _ in asked})
    assert [sum(c == i for c, _, _ in asked) for i in range(3)] == [7, 6, 0]
    assert {c for c, _, _ in others} == {2}
    for _, query, supports in asked:
        assert len(set(supports)) == 5
        assert query not in supports
    assert program.questions(benchmark) == (asked, others)


def test_the_command_line_measures_and_keeps_other_variants(root, data, monkeypatch, capsys):
    monkeypatch.setattr(program, "CLASSES", 2)
    run = tiny(data, 64)
    for aspect in ("resize", "pad"):
        monkeypatch.setattr(sys, "argv", ["photographs", "tiny", "--root", str(root), "--aspect", aspect])
        program.main()
    results = json.loads((run / "photographs.json").read_text())["results"]
    assert [r["aspect"] for r in results] == ["squash", "pad"]
    for result in results:
        assert len(result["shares"]) == 13
        assert result["shares"][0] == pytest.approx(1600 / 4800, abs=0.02)
        for shot in result["shots"].values():
            assert sum(part["episodes"] for part in shot["by_size"]) == 13
            low, high = shot["difference"]["interval"]
            assert low <= shot["difference"]["miou"] <= high or low == high
        # The stored areas give the stored score again.
        score = SegmentationScore.from_rows(result["areas"]["5"]["prototypes"], [0, 1])
        assert score.miou() == pytest.approx(result["shots"]["5"]["prototypes"]["miou"])
    # Padding that found everything would gain the missing points, and every resampling says so.
    perfect = json.loads(json.dumps(results[0])) | {"aspect": "pad"}
    for row in perfect["areas"]["5"]["HSNet"]:
        row[2] = row[4]
    line = program.aspects_table([results[0], perfect]).splitlines()[-1]
    gained = 100 - results[0]["shots"]["5"]["HSNet"]["miou"]
    assert line.split("|")[1].strip() == "5"
    assert f"{gained:+.1f} [" in line
    assert "pad, 64 px" in capsys.readouterr().out


def test_no_threshold_is_better_than_the_best_cut():
    for ties in (3, 1000):
        scores = RNG.integers(0, ties, (12, 17)) / ties
        truth = RNG.random((12, 17)) < 0.3 + 0.4 * scores
        ious = [((scores >= t) & truth).sum() / ((scores >= t) | truth).sum() for t in np.unique(scores)]
        cut = program.best_cut(scores, truth)
        assert (cut & truth).sum() / (cut | truth).sum() == max(ious)
        assert (cut == (scores >= scores[cut].min())).all()


def test_what_the_features_alone_tell_apart(root, data, monkeypatch, capsys):
    monkeypatch.setattr(program, "CLASSES", 2)
    run = tiny(data, 96)
    segmenter = program.Segmenter("tiny")

    def picture(left, right):
        pixels = RNG.integers(0, 256, (96, 96, 3), np.uint8)
        pixels[:, :48] = (pixels[:, :48] * left).astype(np.uint8)
        pixels[:, 48:] = (pixels[:, 48:] * right).astype(np.uint8)
        mask = np.zeros((96, 96), bool)
        mask[:, :48] = True
        return Sample(pixels, mask, mask, np.zeros_like(mask))

    alike = program.separation(segmenter, [[picture(0.1, 1), picture(0.1, 1)]])
    noise = program.separation(segmenter, [[picture(1, 1), picture(1, 1)] for _ in range(5)])
    assert [row["side"] for row in alike] == [12, 6, 3]
    for way in ("best", "mean"):
        assert all(row[way] > 90 for row in alike[:2])
        assert all(35 < row[way] < 75 for row in noise[:2])
    monkeypatch.setattr(sys, "argv", ["photographs", "tiny", "--root", str(root), "--features"])
    monkeypatch.setattr(program, "SCENES", ("shapes",))
    program.main()
    measured = json.loads((run / "photograph-features.json").read_text())
    rows, cuts = measured["rows"], measured["cuts"]
    assert [(row["pictures"], row["size"]) for row in rows] == [
        ("photographs", 96), ("photographs", 400), ("photographs", 512), ("training scenes, shapes", 96)
    ]  # fmt: skip
    out = capsys.readouterr().out
    assert "512 px" in out
    assert [row["size"] for row in cuts] == 4 * [96] + 4 * [400]
    for row in cuts:
        assert row["best cut"]["all"]["episodes"] == 13
        if row["as it is"]:  # of each picture the best: never behind any other threshold
            assert row["best cut"]["all"]["miou"] >= row["as it is"]["all"]["miou"]
    everything = next(row for row in cuts if row["ranked by"].startswith("nothing"))
    assert everything["best cut"] == everything["as it is"]
    assert everything["best cut"]["all"]["miou"] == pytest.approx(100 / 3, abs=2)  # the share of each square
    assert f"{everything['best cut']['all']['miou']:.1f}" in out
