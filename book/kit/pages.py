"""What the pages of the book share: one query that shows two objects, and the episodes of the ladder of scores."""

import json
import os
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from hsnet.backbone import Backbone
from hsnet.benchmarks import Benchmark, Episode, load_benchmark
from hsnet.benchmarks.drawn import DrawnBenchmark
from hsnet.benchmarks.scenes import LEAST_VISIBLE
from hsnet.config import Config
from hsnet.correlation import mask_features
from hsnet.episodes import Batch, EpisodeDataset, load_episode, test_episodes
from hsnet.metrics import SegmentationScore
from hsnet.paths import ROOT, data_folder
from hsnet.runs import write_json

RUN = "emoji-fold0-288px"  # the trained network the pages show
LAPTOP_RUN = Config().run  # what `make train` leaves
SIZE = 288  # pixels a side

PHOTOGRAPHERS = "Photographs: COCO, CC BY 2.0. Their addresses at Flickr are in data/photographs/attribution.csv."
THREAD = 136  # place of the pages' query among the 5-shot test episodes: a videocassette and a light bulb
LADDER = 200  # so many test episodes carry the ladder: the first ones of the 1000 that every table uses


def emoji() -> Benchmark:
    """The embedded benchmark at the size of the pages."""
    return load_benchmark("emoji", size=SIZE)


def photographs() -> Benchmark:
    """29 photographs of COCO with the masks of 15 classes: none was seen in training."""
    return load_benchmark("folder", size=SIZE, root=ROOT / "data" / "photographs")


def episode_of(class_name: str, query: int = 0, shot: int = 1) -> Episode:
    """The episode of a class whose query and supports are photographs that show it."""
    benchmark = photographs()
    class_id = benchmark.class_names.index(class_name)
    names = [name for name, c in benchmark.listed("all") if c == class_id]
    chosen = names.pop(query)
    return Episode(chosen, tuple(names[:shot]), class_id)


def bowls(shot: int = 3) -> Episode:
    """The photographs that chapter 15 follows: one bowl, found by up to three others. Bowls are no class of training."""
    return episode_of("bowl", query=1, shot=shot)


def thread(benchmark: Benchmark, shot: int = 1) -> list[Episode]:
    """The two episodes of the book's query: its videocassette (up to five supports), and its light bulb (one)."""
    first = test_episodes(benchmark, fold=0, shot=5)[THREAD]
    supports = first.supports[2:] + first.supports[:2]  # the third shows the whole cassette
    return [replace(first, supports=supports[:shot]), *other_episodes(benchmark, first)]


def other_episodes(benchmark: DrawnBenchmark, episode: Episode) -> list[Episode]:
    """Episodes of the same query and each of its other visible objects, with a support by another artist."""
    split, fold, _, _, key = episode.query.split(".")
    rng = np.random.default_rng([1, int(key)])
    labels = benchmark.scene(episode.query).labels
    episodes = []
    for i, (class_id, artist) in enumerate(benchmark.objects(episode.query)[1:], start=2):
        others = [a for a in benchmark.artists(class_id, split) if a != artist]
        support = f"{split}.{fold}.{class_id}.{others[rng.integers(len(others))]}.{rng.integers(2**40)}"
        if (labels == i).mean() >= LEAST_VISIBLE:
            episodes.append(Episode(episode.query, (support,), class_id))
    return episodes


def thread_batches(benchmark: Benchmark, shot: int = 1) -> tuple[list[Batch], list[str]]:
    """`thread` as batches of one episode, and the names of their classes."""
    episodes = thread(benchmark, shot)
    batches = [load_episode(benchmark, episode, size=SIZE) for episode in episodes]
    return batches, [benchmark.class_names[episode.class_id] for episode in episodes]


@torch.no_grad()
def masked_features(backbone: Backbone, batch: Batch) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
    """The query's features, and the masked ones of its first support, per level (fine to coarse) and layer."""
    query, support = (backbone(backbone.normalize(pictures)) for pictures in (batch.query, batch.support[:, 0]))
    return query, mask_features(support, batch.support_mask[:, 0])


def ladder_episodes(benchmark: Benchmark) -> EpisodeDataset:
    """The episodes on which every chapter scores what it has built so far."""
    return EpisodeDataset(benchmark, SIZE, test_episodes(benchmark, fold=0, shot=1)[:LADDER])


def rung(chapter: int, name: str, score: SegmentationScore) -> dict[str, tuple[float, tuple[float, float]]]:
    """The ladder up to a chapter, for `figures.ladder`: mIoU and interval of each rung so far, and the trained network's.

    The rungs of all chapters are stored in `data/ladder.json`. A chapter's own is written there when it is executed with
    `HSNET_LADDER=write`, and otherwise compared with what is stored.

    Args:
        chapter: number of the chapter that measured `score`; 1 begins the ladder.
        name: what the bar says.

    Raises:
        ValueError: the score is not the stored one (by more than a point, for processors round differently), or is not
            stored.
    """
    path = ROOT / "data" / "ladder.json"
    rungs = {r["name"]: r for r in json.loads(path.read_text())["rungs"]} if path.exists() else {}
    if os.environ.get("HSNET_LADDER") == "write":
        rungs[name] = {"chapter": chapter, "name": name, "miou": score.miou(), "interval": list(score.interval())}
        ordered = sorted(rungs.values(), key=lambda r: r["chapter"])
        write_json(path, {"episodes": LADDER, "run": RUN, "rungs": ordered})
    stored = rungs.get(name)
    if stored is None or abs(stored["miou"] - score.miou()) > 1:
        raise ValueError(
            f"{name!r} scores {score.miou():.1f}, {path} has {stored and round(stored['miou'], 1)}: if the change is "
            "meant, execute the chapter with HSNET_LADDER=write"
        )
    so_far = [r for r in rungs.values() if r["chapter"] < chapter or r["name"] == name]
    bars = {r["name"]: (r["miou"], tuple(r["interval"])) for r in sorted(so_far, key=lambda r: r["chapter"])}
    trained = run_score(RUN, shot=1, count=LADDER)
    return bars | {"HSNet, trained": (trained.miou(), trained.interval())}


def as_image(tensor: UInt8[Tensor, "3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """A picture of a `Batch`, to be drawn."""
    return tensor.permute(1, 2, 0).numpy()


def run_score(run: str, name: str = "HSNet", shot: int = 1, count: int | None = None) -> SegmentationScore:
    """What a run stored of its test: the score over the first `count` episodes (default: all).

    Args:
        name: "HSNet" or "prototypes".

    Raises:
        FileNotFoundError: a run that was not tested with this shot, saying how to.
    """
    path = data_folder() / "runs" / run / f"test-{shot}shot.json"
    if not path.exists():
        raise FileNotFoundError(f"no {path}: write it with `python -m hsnet.evaluate {run} --shot {shot}`")
    test = json.loads(path.read_text())
    return SegmentationScore.from_rows(test["areas"][name][:count], resample_classes=test["resample_classes"])
