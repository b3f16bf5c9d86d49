"""From the names of an episode to tensors."""

import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, fields, replace
from typing import TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor
from tqdm import tqdm

from .benchmarks import Benchmark, Episode, UnreadableFileError
from .benchmarks.augment import augment
from .benchmarks.resize import Square, resize_sample
from .config import TEST_LISTS
from .distributed import all_gather, part_of, rank, world

REPLACEMENTS = 100  # episodes that are drawn for one place of a batch before the data is given up
T = TypeVar("T")


@dataclass
class Batch:
    """Episodes as tensors: pictures are uint8 RGB, masks boolean.

    Attributes:
        query: b 3 h w.
        query_mask: b hq wq, the truth; of the same size as the query, or the picture's own where that is scored.
        query_objects: b hq wq, every annotated object of the query, of any class.
        ignored: b hq wq, query pixels that scoring leaves out.
        support: b k 3 h w.
        support_mask: b k h w.
        class_id: b.
        passed_over: what was wrong with files for which other episodes stand in.
    """

    query: UInt8[Tensor, "b 3 h w"]
    query_mask: Bool[Tensor, "b hq wq"]
    query_objects: Bool[Tensor, "b hq wq"]
    ignored: Bool[Tensor, "b hq wq"]
    support: UInt8[Tensor, "b k 3 h w"]
    support_mask: Bool[Tensor, "b k h w"]
    class_id: Int[Tensor, " b"]
    passed_over: tuple[str, ...] = ()

    def to(self, device) -> "Batch":
        """The same batch on a device."""
        return replace(self, **{name: t.to(device, non_blocking=True) for name, t in self._tensors().items()})

    def _tensors(self):
        return {f.name: t for f in fields(self) if isinstance(t := getattr(self, f.name), Tensor)}

    def pin_memory(self) -> "Batch":
        """The same batch where a GPU can fetch it by itself; the loader calls this."""
        return replace(self, **{name: t.pin_memory() for name, t in self._tensors().items()})

    def split(self, count: int) -> list["Batch"]:
        """Parts of at most `count` episodes, in their order."""
        tensors = self._tensors()
        parts = zip(*(tensor.split(count) for tensor in tensors.values()), strict=True)
        return [Batch(**dict(zip(tensors, part, strict=True))) for part in parts]

    @staticmethod
    def stack(batches: Sequence["Batch"]) -> "Batch":
        """One batch of several, in their order."""
        tensors = {name: torch.cat([getattr(b, name) for b in batches]) for name in batches[0]._tensors()}
        return Batch(**tensors, passed_over=tuple(message for b in batches for message in b.passed_over))


def load_episode(
    benchmark: Benchmark,
    episode: Episode,
    size: int,
    *,
    original_size: bool = False,
    change: Callable[[Square], Square] = lambda square: square,
) -> Batch:
    """Read an episode's pictures: a batch of one.

    Args:
        change: applied to the query and to each support.
        original_size: leave the query's masks at the picture's own size, to score there.

    Raises:
        FileNotFoundError: a picture that is not there.
        UnreadableFileError: one that cannot be read.
    """
    if original_size:
        query = resize_sample(benchmark.read(episode.query, episode.class_id), size, masks=False)
    else:
        query = change(benchmark.read_square(episode.query, episode.class_id, size))
    supports = [change(benchmark.read_square(name, episode.class_id, size)) for name in episode.supports]
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
    """Names to `Batch`: one item, one episode.

    Training episodes are drawn from a generator seeded by (seed, epoch, index), so they are the same whatever the
    number of workers and processes, and differ between epochs: set `epoch` before each. Where a training file cannot be
    read, the next episode that the same generator draws stands in; `loader` counts such files and gives up when they
    are too many. In a fixed list such a file is an error at once: a score must not change unseen.

    Args:
        benchmark: where the pictures come from.
        size: side of the squares in pixels.
        episodes: a fixed list (validation, test); or None to draw `count` training episodes of `fold`.
        augment: changes of training images, see `hsnet.benchmarks.augment`.
        bad_files: how many unreadable training files are passed over.
        original_size: leave the queries' masks at the pictures' own size; batches are then of one.
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
        bad_files: int = 0,
        original_size: bool = False,
    ):
        self.benchmark, self.size, self.episodes = benchmark, size, episodes
        self.fold, self.count, self.seed = fold, count, seed
        self.augment, self.bad_files, self.original_size = augment, bad_files, original_size
        self.epoch = 0
        self.passed_over: dict[str, None] = {}  # messages of unreadable files, in the order they were met
        self._order: tuple[int, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.count if self.episodes is None else len(self.episodes)

    def __getitem__(self, index: int) -> Batch:
        if self.episodes is not None:
            return load_episode(self.benchmark, self.episode(index), self.size, original_size=self.original_size)
        rng = self._generator(index)
        wrong: dict[str, None] = {}
        episode = self.episode(index, rng)
        for _ in range(REPLACEMENTS):
            try:
                change = lambda square: augment(square, self.augment, rng)  # noqa: E731
                batch = load_episode(self.benchmark, episode, self.size, change=change)
            except (UnreadableFileError, FileNotFoundError) as error:
                wrong[str(error)] = None
                if len(wrong) > self.bad_files:
                    break
                episode = self.benchmark.draw(rng, self.fold)
            else:
                batch.passed_over = tuple(wrong)
                return batch
        raise _too_many(wrong, self.bad_files)

    def _generator(self, index):
        return np.random.default_rng([self.seed, self.epoch, index])

    def episode(self, index: int, rng: np.random.Generator | None = None) -> Episode:
        """The names of the episode at `index`, of the current epoch in training.

        Args:
            rng: draws it; None: the generator that the place in the training seeds.
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
            first: leave out so many batches at the beginning.
            share: (i, n) for the i-th of n equal parts of each batch, counted from 0; None where a part is empty.

        Raises:
            UnreadableFileError: when iterated, more unreadable files than are passed over, with their list.
        """
        batch = 1 if self.original_size else batch
        return _Loader(
            _Catching(self),
            batch_sampler=_Steps(len(self), batch, first, share),
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # its own: the training's is not drawn from
        )

    def note(self, batch: Batch) -> None:
        """Name each file that was passed over once; raise when they are too many."""
        for message in batch.passed_over:
            if message not in self.passed_over:
                self.passed_over[message] = None
                tqdm.write(f"passed over ({len(self.passed_over)} of at most {self.bad_files}): {message}")
        if len(self.passed_over) > self.bad_files:
            raise _too_many(self.passed_over, self.bad_files)


def require_readable(dataset: EpisodeDataset, threads: int = 1, what: str = "validation") -> None:
    """Read every file that a fixed list of episodes needs, once: what would end its scoring is said now.

    Files are decoded as a whole, since a header tells nothing of an end that is missing. That finds files that are not
    there, broken off or no pictures, masks of another size or with unknown labels; not pictures that decode to something
    else than they were. What a cache holds is not read. Several processes share the work.

    Raises:
        UnreadableFileError: what is wrong with all such files, and the next step.
    """
    names = sorted({name for episode in dataset.episodes for name in (episode.query, *episode.supports)})
    own = shard(names, rank(), world())
    look = lambda name: dataset.benchmark.flaws(name, dataset.size)  # noqa: E731
    # Closed, so that Ctrl-C does not wait for what is left.
    with ThreadPoolExecutor(threads) as pool, closing(pool.map(look, own)) as looked_at:
        title = f"reading the {what}'s files"
        bar = tqdm(looked_at, title, len(own), unit="picture", leave=False, delay=2, disable=rank() > 0)
        found = [flaw for flaws in all_gather(list(bar)) for flaw in flaws]
    if found:
        raise UnreadableFileError(
            f"{len(found)} of the files that {what} needs cannot be used, and a score must not leave any out: put them "
            f"right (`python -m hsnet.prepare {dataset.benchmark.name} --check` says how), then start the same command "
            "again\n" + "\n".join(f"  {flaw}" for flaw in found)
        )


def _too_many(messages, tolerated):
    if len(messages) == 1 and not tolerated:
        return UnreadableFileError(next(iter(messages)))
    return UnreadableFileError(
        f"{len(messages)} training files cannot be used, {tolerated} are passed over (--bad-files): put them right, then "
        "start the same command again\n" + "\n".join(f"  {message}" for message in messages)
    )


@dataclass
class _Catching(torch.utils.data.Dataset):
    """Hands on what is wrong with a file as an item: raised in a worker, it would arrive wrapped in a traceback."""

    episodes: EpisodeDataset

    def __len__(self):
        return len(self.episodes)

    def __getitem__(self, index):
        try:
            return self.episodes[index]
        except (UnreadableFileError, FileNotFoundError) as error:
            return error


def _collate(items):
    if not items:  # a process without a part of this batch
        return None
    return next((item for item in items if isinstance(item, Exception)), None) or Batch.stack(items)


@dataclass
class _Steps:
    """The indices of each step's episodes; see `EpisodeDataset.loader`."""

    count: int
    batch: int
    first: int
    share: tuple[int, int]

    def __len__(self):
        return max(0, -(-self.count // self.batch) - self.first)

    def __iter__(self):
        for begin in range(self.first * self.batch, self.count, self.batch):
            indices = range(begin, min(begin + self.batch, self.count))
            yield list(indices[slice(*part_of(len(indices), *self.share))])


class _Loader(torch.utils.data.DataLoader):
    """Starts its workers with Ctrl-C and SIGTERM blocked: they are the program's to answer, for which it needs its workers."""

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._start():
            if isinstance(batch, Exception):
                raise batch
            if batch is not None:
                self.dataset.episodes.note(batch)
            yield batch

    def _start(self):
        if not hasattr(signal, "pthread_sigmask"):  # Windows
            return super().__iter__()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def shard(items: Sequence[T], rank: int, world: int) -> list[T]:
    """What one of `world` processes takes of a list: every item goes to exactly one, none is added to fill up.

    Raises:
        ValueError: a rank that is not of the world.
    """
    if not 0 <= rank < world:
        raise ValueError(f"rank is {rank} of a world of {world}: ranks are 0 to world - 1")
    return list(items[rank::world])


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
    """The list of episodes that test a fold: a function of its arguments alone.

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
