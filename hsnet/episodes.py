"""From the names of an episode to tensors."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .benchmarks import Benchmark, Episode, Sample

PROTOCOLS = ("official",)


@dataclass
class Batch:
    """Episodes as tensors: pictures are uint8 RGB, masks boolean.

    Attributes:
        query: b 3 h w.
        query_mask: b h w, the truth.
        query_objects: b h w, every annotated object of the query, of any class.
        ignored: b h w, query pixels that scoring leaves out.
        support: b k 3 h w.
        support_mask: b k h w.
        class_id: b.
    """

    query: UInt8[Tensor, "b 3 h w"]
    query_mask: Bool[Tensor, "b h w"]
    query_objects: Bool[Tensor, "b h w"]
    ignored: Bool[Tensor, "b h w"]
    support: UInt8[Tensor, "b k 3 h w"]
    support_mask: Bool[Tensor, "b k h w"]
    class_id: Int[Tensor, " b"]

    def to(self, device) -> "Batch":
        """The same batch on a device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)})

    @staticmethod
    def stack(batches: Sequence["Batch"]) -> "Batch":
        """One batch of several, in their order."""
        return Batch(**{f.name: torch.cat([getattr(b, f.name) for b in batches]) for f in fields(Batch)})


def resize_image(image: np.ndarray, size: int) -> UInt8[Tensor, "3 h w"]:
    """uint8 RGB (h, w, 3), squashed to a square by PIL's bilinear resize."""
    if image.shape[:2] != (size, size):
        image = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    return torch.tensor(image).permute(2, 0, 1)


def resize_mask(mask: np.ndarray, size: int) -> Bool[Tensor, "h w"]:
    """bool (h, w), squashed to a square: nearest, rounding down, as in the reference."""
    mask = torch.tensor(mask)
    if mask.shape != (size, size):
        mask = F.interpolate(mask[None, None].float(), (size, size), mode="nearest")[0, 0] > 0
    return mask


def load_episode(benchmark: Benchmark, episode: Episode, size: int) -> Batch:
    """Read an episode's pictures: a batch of one.

    Raises:
        FileNotFoundError: a picture that is not there.
    """
    query = benchmark.read(episode.query, episode.class_id)
    supports = [benchmark.read(name, episode.class_id) for name in episode.supports]
    return to_batch(query, supports, episode.class_id, size)


def to_batch(query: Sample, supports: list[Sample], class_id: int, size: int) -> Batch:
    """A batch of one from pictures in memory, squashed to `size` × `size`."""
    return Batch(
        query=resize_image(query.image, size)[None],
        query_mask=resize_mask(query.mask, size)[None],
        query_objects=resize_mask(query.objects, size)[None],
        ignored=resize_mask(query.ignored, size)[None],
        support=torch.stack([resize_image(s.image, size) for s in supports])[None],
        support_mask=torch.stack([resize_mask(s.mask, size) for s in supports])[None],
        class_id=torch.tensor([class_id]),
    )


class EpisodeDataset(torch.utils.data.Dataset):
    """Names to `Batch`: one item, one episode.

    Training episodes are drawn from a generator seeded by (seed, epoch, index), so they are the same whatever the
    number of workers, and differ between epochs: set `epoch` before each.

    Args:
        benchmark: where the pictures come from.
        size: side of the squares in pixels.
        episodes: a fixed list (validation, test); or None to draw `count` training episodes of `fold`.
    """

    def __init__(
        self,
        benchmark: Benchmark,
        size: int,
        episodes: list[Episode] | None = None,
        *,
        fold: int = 0,
        count: int = 0,
        seed: int = 0,
    ):
        self.benchmark, self.size, self.episodes = benchmark, size, episodes
        self.fold, self.count, self.seed = fold, count, seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.count if self.episodes is None else len(self.episodes)

    def __getitem__(self, index: int) -> Batch:
        if self.episodes is not None:
            episode = self.episodes[index]
        else:
            episode = self.benchmark.draw(np.random.default_rng([self.seed, self.epoch, index]), self.fold)
        return load_episode(self.benchmark, episode, self.size)

    def loader(self, batch: int, workers: int = 0) -> torch.utils.data.DataLoader:
        """The episodes in order, `batch` at a time; the last batch may be smaller."""
        return _Loader(self, batch, num_workers=workers, collate_fn=Batch.stack, pin_memory=torch.cuda.is_available())


class _Loader(torch.utils.data.DataLoader):
    """Starts its workers with Ctrl-C blocked: it is the program's to answer, and a worker's traceback would only confuse."""

    def __iter__(self):
        if not hasattr(signal, "pthread_sigmask"):  # Windows
            return super().__iter__()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_episodes(
    benchmark: Benchmark,
    *,
    fold: int,
    shot: int,
    count: int = 1000,
    seed: int = 0,
    protocol: str = "official",
    split: str = "test",
) -> list[Episode]:
    """The list of episodes that test a fold: a function of its arguments alone.

    Args:
        shot: supports an episode.
        count: how many episodes.
        protocol: "official", the benchmark's own rule.
        split: "test", or "val" for the list that chooses the epoch (the same one on COCO).

    Raises:
        ValueError: an argument out of its range.
    """
    if shot < 1:
        raise ValueError(f"shot is {shot}: an episode needs at least one support")
    if protocol not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}: choose one of {', '.join(PROTOCOLS)}")
    benchmark.classes(fold, split)  # names a wrong fold or split
    return benchmark.test_episodes(fold, shot, count, seed, split)


test_episodes.__test__ = False  # its name makes pytest take it for a test
