"""From the names of an episode to tensors."""

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor
from tqdm import tqdm

from .benchmarks import Benchmark, Episode, UnreadableFileError
from .benchmarks.augment import augment
from .benchmarks.resize import Square, resize_sample
from .config import TEST_LISTS
from .distributed import part_of, rank, world
from .windows import DETAIL, resized


@dataclass
class Batch:
    """Episodes as tensors: images are uint8 RGB, masks boolean.

    Attributes:
        query: the images to segment.
        query_mask: the truth; of the network's size, or the image's own where that is scored.
        query_objects: every annotated object of the query, of any class.
        ignored: query pixels that scoring leaves out.
        support: the K support images of each query.
        support_mask: the objects of the class in them.
        class_id: the class of each episode.
    """

    query: UInt8[Tensor, "b 3 h w"]
    query_mask: Bool[Tensor, "b hq wq"]
    query_objects: Bool[Tensor, "b hq wq"]
    ignored: Bool[Tensor, "b hq wq"]
    support: UInt8[Tensor, "b k 3 h w"]
    support_mask: Bool[Tensor, "b k h w"]
    class_id: Int[Tensor, " b"]

    def to(self, device) -> "Batch":
        """The same batch on a device."""
        return Batch(**{name: t.to(device, non_blocking=True) for name, t in vars(self).items()})

    def pin_memory(self) -> "Batch":
        """The same batch in pinned memory; the loader calls this."""
        return Batch(**{name: t.pin_memory() for name, t in vars(self).items()})

    def split(self, count: int) -> list["Batch"]:
        """Parts of at most `count` episodes, in their order."""
        parts = zip(*(tensor.split(count) for tensor in vars(self).values()), strict=True)
        return [Batch(*part) for part in parts]

    def resized(self, side: int) -> "Batch":
        """The same batch with its images, and the supports' masks, as squares of this side; the truth keeps its size."""
        whole = 0, 0, *self.query.shape[-2:]
        names = "query", "support", "support_mask"
        return replace(self, **{name: resized(getattr(self, name), whole, side) for name in names})

    @staticmethod
    def stack(batches: Sequence["Batch"]) -> "Batch":
        """One batch of several, in their order."""
        return Batch(*(torch.cat(tensors) for tensors in zip(*(vars(b).values() for b in batches), strict=True)))


def load_episode(
    benchmark: Benchmark,
    episode: Episode,
    size: int,
    *,
    original_size: bool = False,
    detail: int = 1,
    change: Callable[[Square, bool], Square] = lambda square, support: square,
) -> Batch:
    """Read an episode's images: a batch of one.

    Args:
        change: applied to the query and to each support, and told whether it is one.
        original_size: leave the query's masks at the image's own size, to score there.
        detail: images and supports' masks are so many times as large, for `HSNet.zoom`.

    Raises:
        FileNotFoundError: a missing image.
        UnreadableFileError: one that cannot be read.
    """
    if original_size:
        query = resize_sample(benchmark.read(episode.query, episode.class_id), size, masks=False)
    else:
        query = change(benchmark.read_square(episode.query, episode.class_id, size), False)
    large = detail * size
    if detail > 1:
        query = replace(query, image=benchmark.read_square(episode.query, episode.class_id, large).image)
    supports = [change(benchmark.read_square(name, episode.class_id, large), True) for name in episode.supports]
    return Batch(
        query=query.image[None],
        query_mask=query.mask[None],
        query_objects=query.objects[None],
        ignored=query.ignored[None],
        support=torch.stack([s.image for s in supports])[None],
        support_mask=torch.stack([s.mask for s in supports])[None],
        class_id=torch.tensor([episode.class_id]),
    )


class EpisodeDataset(torch.utils.data.Dataset):
    """Reads episodes: each item is a `Batch` of one episode.

    Training episodes are drawn from a generator seeded by (seed, epoch, index), so they are the same whatever the
    number of workers and processes, and differ between epochs: set `epoch` before each.

    Args:
        benchmark: source of the images.
        size: side of the squares in pixels.
        episodes: a fixed list (validation, test); or None to draw `count` training episodes of `fold`.
        augment: augmentation of training images, see `hsnet.benchmarks.augment`.
        original_size: leave the queries' masks at the images' own sizes; a batch then has one episode.
        detail: see `load_episode`.
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
        augment: tuple[str, ...] = (),
        original_size: bool = False,
        detail: int = 1,
    ):
        self.benchmark, self.size, self.episodes = benchmark, size, episodes
        self.fold, self.count, self.seed = fold, count, seed
        self.augment, self.original_size, self.detail = augment, original_size, detail
        self.epoch = 0
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.count if self.episodes is None else len(self.episodes)

    def __getitem__(self, index: int) -> Batch:
        if self.episodes is not None:
            shown = {"original_size": self.original_size, "detail": self.detail}
            return load_episode(self.benchmark, self.episode(index), self.size, **shown)
        rng = self._generator(index)
        episode = self.episode(index, rng)
        if not self.augment:
            return load_episode(self.benchmark, episode, self.size)

        def change(square, support):
            return augment(square, self.augment, rng, self.size, support=support)

        large = self.size * (DETAIL if "zoom" in self.augment else 1)
        return load_episode(self.benchmark, episode, large, change=change)

    def __getitems__(self, indices: Sequence[int]) -> list[Batch] | Exception:
        """Several items, for the loader; or the error of a file, which would arrive from a worker wrapped in a traceback."""
        try:
            return [self[index] for index in indices]
        except (UnreadableFileError, FileNotFoundError) as error:
            return error

    def _generator(self, index):
        return np.random.default_rng([self.seed, self.epoch, index])

    def episode(self, index: int, rng: np.random.Generator | None = None) -> Episode:
        """The names of the episode at `index`, of the current epoch in training.

        Args:
            rng: draws the episode; by default a generator seeded by (seed, epoch, index).
        """
        if self.episodes is not None:
            return self.episodes[index]
        rng = self._generator(index) if rng is None else rng
        if not self.benchmark.each_query_once:
            return self.benchmark.draw(rng, self.fold)
        # Each query once before any again: in an order of its own in each epoch, the same in every process.
        queries = self.benchmark.training_queries(self.fold)
        if self._order is None or self._order[0] != self.epoch:
            rounds = -(-self.count // queries)
            orders = [np.random.default_rng([self.seed, self.epoch, r]).permutation(queries) for r in range(rounds)]
            self._order = self.epoch, np.concatenate(orders)
        return self.benchmark.draw(rng, self.fold, place=int(self._order[1][index]))

    def loader(
        self, batch: int, workers: int = 0, *, first: int = 0, share: tuple[int, int] = (0, 1)
    ) -> torch.utils.data.DataLoader:
        """The episodes in order, `batch` at a time; the last batch may be smaller.

        Args:
            first: number of batches to skip at the beginning.
            share: (i, n) for the i-th of n equal parts of each batch, counted from 0. An empty part is returned as None.

        Raises:
            UnreadableFileError: when iterated, a file that is missing or cannot be read, with the next step.
        """
        batch = 1 if self.original_size else batch
        steps = [range(begin, min(begin + batch, len(self))) for begin in range(first * batch, len(self), batch)]
        return _Loader(
            self,
            batch_sampler=[step[slice(*part_of(len(step), *share))] for step in steps],
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # its own: the training's is not drawn from
        )


def require_readable(dataset: EpisodeDataset, what: str, threads: int) -> None:
    """Read every file of a fixed list of episodes: a test must not end after days of training because of a file.

    Several processes share the files.

    Raises:
        UnreadableFileError: what is wrong with each such file, and the next step.
    """
    benchmark, episodes = dataset.benchmark, dataset.episodes
    names = sorted({name for episode in episodes for name in (episode.query, *episode.supports)})[rank() :: world()]
    # Closed, so that Ctrl-C does not wait for the remaining files.
    with (
        ThreadPoolExecutor(threads) as pool,
        closing(pool.map(lambda name: benchmark.flaws(name, dataset.detail * dataset.size), names)) as read,
    ):
        bar = tqdm(
            read, f"reading the {what} files", len(names), unit="image", leave=False, delay=2, disable=rank() > 0
        )
        found = [flaw for flaws in bar for flaw in flaws]
    if found:
        raise UnreadableFileError(
            f"{len(found)} of the {what} files cannot be used: repair them, then start the same command again\n"
            + "\n".join(f"  {flaw}" for flaw in found)
        )


def uploaded(batches: Iterable[Batch | None], device: torch.device) -> Iterator[Batch | None]:
    """Batches on a device. To a GPU each is copied while the one before is used."""
    if device.type != "cuda":
        yield from (batch and batch.to(device) for batch in batches)
        return
    computing, copying, before = torch.cuda.current_stream(device), torch.cuda.Stream(device), []
    for batch in batches:
        computing.wait_stream(copying)  # until the batch before has arrived
        with torch.cuda.stream(copying):
            coming = batch and batch.to(device)
        for tensor in vars(coming).values() if coming else ():
            tensor.record_stream(computing)  # which is to be done with it before another batch takes its memory
        yield from before
        before = [coming]
    computing.wait_stream(copying)
    yield from before


def _collate(items):
    """A batch; an error as it is; None for a process without a part of this batch."""
    return items if isinstance(items, Exception) else Batch.stack(items) if items else None


class _Loader(torch.utils.data.DataLoader):
    """Starts its workers with Ctrl-C and SIGTERM blocked: they are the program's to answer, for which it needs its workers."""

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._start():
            if isinstance(batch, Exception):
                benchmark = self.dataset.benchmark
                name = benchmark.prepared or benchmark.name
                root = f" --root {benchmark.root}" if benchmark.options else ""
                check = f"`python -m hsnet.prepare {name}{root} --check` finds all such files"
                raise UnreadableFileError(f"{batch}. {check}; then start the same command again")
            yield batch

    def _start(self):
        if not hasattr(signal, "pthread_sigmask"):  # Windows
            return super().__iter__()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
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
    protocol: str | None = None,
    split: str = "test",
) -> list[Episode]:
    """The test episodes of a fold, which depend on the arguments alone.

    Args:
        shot: supports an episode.
        count: how many episodes.
        protocol: "official", the benchmark's own rule, or "strict"; None: the one the benchmark was loaded with.
        split: "test", or "val" for the list that chooses the epoch (officially the same one on PASCAL and COCO).

    Raises:
        ValueError: an argument out of its range, or lists with too few images.
    """
    if shot < 1:
        raise ValueError(f"shot is {shot}: an episode needs at least one support")
    if protocol is not None:
        benchmark = benchmark.under(protocol)
    benchmark.classes(fold, split)  # names a wrong fold or split
    return benchmark.test_episodes(fold, shot, count, seed, split)


def test_lists(benchmark: Benchmark, *, fold: int, shot: int, count: int) -> list[list[Episode]]:
    """All lists of test episodes that the benchmark's protocol asks for: seeded 0, 1, … and `count` episodes each."""
    return [
        test_episodes(benchmark, fold=fold, shot=shot, count=count, seed=seed)
        for seed in range(TEST_LISTS[benchmark.protocol])
    ]


test_episodes.__test__ = test_lists.__test__ = False  # their names make pytest take them for tests
