"""How photographs are asked and counted, on a tiny COCO drawn here."""

import json
import sys

import numpy as np
import pytest
from kit import photographs as program
from PIL import Image

from hsnet import HSNet
from hsnet.benchmarks import load_benchmark
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


@pytest.fixture
def run(data, monkeypatch):
    """The folder of a run called tiny, as if trained at 64 pixels; its weights are drawn at random."""
    monkeypatch.setattr(program, "CLASSES", 2)
    model = HSNet("efficientnet_lite0")
    model.training_size = 64
    run = data / "runs" / "tiny"
    run.mkdir(parents=True)
    save_model(run / WEIGHTS, model)
    return run


def test_every_picture_is_asked_by_others_of_its_class(root, monkeypatch):
    benchmark = load_benchmark("coco", size=64, root=str(root))
    with pytest.raises(ValueError, match="has 2 classes with more than 5 pictures"):
        program.questions(benchmark)
    monkeypatch.setattr(program, "CLASSES", 2)
    asked = program.questions(benchmark)
    assert len({q for _, q, _ in asked}) == len(asked)
    assert [sum(c == i for c, _, _ in asked) for i in range(3)] == [7, 6, 0]
    for _, query, supports in asked:
        assert len(set(supports)) == 5
        assert query not in supports
    assert program.questions(benchmark) == asked


def test_the_command_line_measures_and_keeps_other_variants(root, run, monkeypatch, capsys):
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
    assert "pad, 64 px" in capsys.readouterr().out
