"""What the pages of the book share: one query that shows two objects, and the episodes of the ladder of scores."""

from dataclasses import replace

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from .benchmarks import Benchmark, Episode, load_benchmark
from .episodes import EpisodeDataset, test_episodes

RUN = "emoji-fold0-efficientnet_lite0"  # the trained network the pages show
SIZE = 256  # pixels a side

THREAD = 136  # place of the pages' query among the 5-shot test episodes: a videocassette and a light bulb
LADDER = 200  # so many test episodes carry the ladder: the first ones of the 1000 that every table uses


def emoji() -> Benchmark:
    """The embedded benchmark at the size of the pages."""
    return load_benchmark("emoji", size=SIZE)


def thread(benchmark: Benchmark, shot: int = 1) -> list[Episode]:
    """The query that is followed through the book, asked for its videocassette (by up to five supports), then its bulb (one)."""
    first = test_episodes(benchmark, fold=0, shot=5)[THREAD]
    return [replace(first, supports=first.supports[:shot]), *benchmark.other_questions(first)]


def ladder_episodes(benchmark: Benchmark) -> EpisodeDataset:
    """The episodes on which every chapter scores what it has built so far."""
    return EpisodeDataset(benchmark, SIZE, test_episodes(benchmark, fold=0, shot=1)[:LADDER])


def as_image(tensor: UInt8[Tensor, "3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """A picture of a `Batch`, to be drawn."""
    return tensor.permute(1, 2, 0).numpy()
