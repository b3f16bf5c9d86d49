"""From files to the mIoU, as the authors' code computes it: golden numbers."""

import numpy as np
import pytest
import torch
from helpers import assert_close
from kit.golden import golden, golden_input, reference_model
from PIL import Image

from hsnet import EpisodeDataset, test_episodes
from hsnet.backbone import Backbone
from hsnet.benchmarks import load_benchmark
from hsnet.engine import evaluate, predictor


def test_preprocessing():
    file = golden("preprocess.npz")
    size, class_id = int(file["size"]), int(file["class_id"])
    benchmark = load_benchmark("pascal", size=size)
    benchmark.picture = lambda name: (Image.fromarray(file["image"]), file["label"])
    square = benchmark.read_square("any", class_id, size)
    normal = Backbone("resnet50", pretrained=False).normalize(square.image[None])[0]
    assert_close(normal[:, ::4, ::4], file["query_img"], 1e-5)
    np.testing.assert_array_equal(square.mask.numpy(), file["query_mask"] > 0)
    np.testing.assert_array_equal(square.mask.numpy(), file["support_mask"] > 0)
    np.testing.assert_array_equal(square.ignored.numpy(), file["query_ignore_idx"] > 0)


@pytest.fixture
def golden_data(tmp_path, monkeypatch):
    """The tree of twelve drawn images from which the authors' code made end_to_end.json."""
    file = golden("end_to_end.json")
    root, splits = tmp_path / "golden", tmp_path / "splits"
    for folder in ("JPEGImages", "SegmentationClassAug"):
        (root / folder).mkdir(parents=True)
    for i, name in enumerate(file["names"]):
        size = (240, 320) if i % 2 else (300, 225)
        image = torch.nn.functional.interpolate(
            golden_input(f"image.{i}", (1, 3, 8, 8)), size, mode="bilinear", align_corners=False
        )
        pixels = (image[0] * 60 + 128).clamp(0, 255).round().permute(1, 2, 0).numpy().astype(np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{name}.jpg", format="PNG")
        field = golden_input(f"label.{i}", (1, 1, 6, 6)).repeat_interleave(40, 2).repeat_interleave(40, 3)
        field = torch.nn.functional.interpolate(field, size, mode="nearest")[0, 0].numpy()
        labels = np.select([field > 1.5, field > 0.4, field < -1], [255, i % 5 + 1, (i + 2) % 5 + 1], 0)
        Image.fromarray(labels.astype(np.uint8)).save(root / "SegmentationClassAug" / f"{name}.png")
    for part in ("trn", "val"):
        (splits / "pascal" / part).mkdir(parents=True)
        for fold in range(4):
            lines = file["split"] if fold == file["fold"] else []
            (splits / "pascal" / part / f"fold{fold}.txt").write_text("".join(line + "\n" for line in lines))
    monkeypatch.setenv("HSNET_SPLITS", str(splits))
    return root


def golden_model():
    model = reference_model("resnet50").eval()
    bias = model.decoder.after[2].bias
    with torch.no_grad():
        bias[1] += golden("end_to_end.json")["foreground_bias_raised_by"]
    return model


@pytest.mark.parametrize(("shot", "count"), [(1, 20), (5, 8)])  # with five supports, which take longer, the first ones
def test_from_files_to_miou(golden_data, shot, count):
    file = golden("end_to_end.json")
    benchmark = load_benchmark("pascal", size=file["size"], root=str(golden_data))
    episodes = test_episodes(benchmark, fold=file["fold"], shot=shot, count=file["episodes"])[:count]
    score = evaluate(
        predictor(golden_model(), torch.device("cpu")),
        EpisodeDataset(benchmark, file["size"], episodes),
        benchmark.classes(file["fold"], "test"),
        batch=2,
        workers=0,
        title="golden",
    )["HSNet"]
    theirs, rows = file[f"{shot}-shot"], file[f"{shot}-shot"]["rows"][:count]
    assert [[e.query, e.class_id] for e in episodes] == [row[:2] for row in rows]
    ours = np.array([row[1:] for row in score.rows])
    difference = np.abs(ours - np.array([row[2:] for row in rows])).max() / file["size"] ** 2
    assert difference <= 1e-3
    if count == len(theirs["rows"]):
        assert (score.miou(), score.fb_iou()) == pytest.approx((theirs["miou"], theirs["fb_iou"]), abs=0.05)
