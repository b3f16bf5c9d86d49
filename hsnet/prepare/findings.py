"""What verification finds in a folder: counts, missing files, a sample of images and masks; each flaw with its remedy."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        text: what was found.
        remedy: what to do about it; empty where it is as it should be.
    """

    text: str
    remedy: str = ""


def report(findings: Iterable[Finding]) -> bool:
    """Print findings as they come; whether all is as it should be."""
    wrong = 0
    for finding in findings:
        print(("ok     " if not finding.remedy else "WRONG  ") + finding.text)
        if finding.remedy:
            wrong += 1
            print(f"       -> {finding.remedy}")
    print("all is as it should be" if not wrong else f"{wrong} thing{'s'[: wrong > 1]} to put right")
    return not wrong


def counted(what: str, found: int, expected: int, remedy: str, *, exactly: bool = False) -> Finding:
    """So many of something; more do no harm unless it must be `exactly` as many."""
    text = f"{found:,} {what}"
    if found < expected or (exactly and found > expected):
        return Finding(f"{text}, {expected:,} expected", remedy)
    return Finding(text + (f" ({expected:,} expected; more do no harm)" if found > expected else ""))


def missing(what: str, names: set[str], there: set[str], remedy: str) -> Iterator[Finding]:
    """Which names are not there. Nothing where no name is known: that the lists are missing has then been said."""
    lacking = names - there
    if lacking:
        yield Finding(f"{len(lacking):,} of {len(names):,} {what} are missing: {first_of(lacking)}", remedy)
    elif names:
        yield Finding(f"all {len(names):,} {what} are there")


def first_of(names: Iterable[str]) -> str:
    """The first three names, sorted."""
    names = sorted(names)
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def anew(folder: Path, again: str) -> str:
    """The remedy that makes a folder again by the command `again`."""
    return f"move {folder} elsewhere if prepare has not fetched all of it, and {again}" if folder.exists() else again


def stems(folder: Path, suffix: str) -> set[str]:
    """The names of a folder's files of a kind, without their suffix."""
    return {path.stem for path in folder.glob(f"*{suffix}")} if folder.is_dir() else set()


def draw(pairs: list, count: int | None) -> Iterator:
    """A sample (None: of 200), the same each time, with a progress bar."""
    drawn = random.Random(0).sample(pairs, min(200 if count is None else count, len(pairs)))
    yield from tqdm(drawn, "opening a sample", unit="image", leave=False, disable=len(drawn) < 20)


class OpenedSample:
    """Opens images with their masks as training does, and gathers what is wrong with them.

    Args:
        benchmark: a `ListedBenchmark`.
        remedy_image, remedy_mask: what to do about a flaw of either.
    """

    def __init__(self, benchmark, remedy_image: str, remedy_mask: str):
        self.benchmark, self.opened = benchmark, 0
        self.remedy_image, self.remedy_mask = remedy_image, remedy_mask
        self.flaws: dict[str, list[str]] = {remedy_image: [], remedy_mask: []}

    def labels(self, name: str) -> UInt8[np.ndarray, "h w"] | None:
        """An image's map of labels, if both can be read and have one size."""
        self.opened += 1
        try:
            return self.benchmark.picture(name)[1]
        except OSError as error:
            of_mask = str(error).startswith(str(self.benchmark.mask_path(name)))
            self.flaws[self.remedy_mask if of_mask else self.remedy_image].append(str(error))
            return None

    def wrong(self, name: str, text: str) -> None:
        """Note a flaw of a mask."""
        self.flaws[self.remedy_mask].append(f"{self.benchmark.mask_path(name)} {text}")

    def findings(self) -> Iterator[Finding]:
        """What was wrong, or that nothing was."""
        for remedy, flaws in self.flaws.items():
            if flaws:
                more = f" (and {len(flaws) - 3} more)" if len(flaws) > 3 else ""
                yield Finding("; ".join(flaws[:3]) + more, remedy)
        if self.opened and not any(self.flaws.values()):
            yield Finding(f"{self.opened} listed pairs of an image and a class opened: sizes and labels are right")
