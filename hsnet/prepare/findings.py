"""What verification finds in a folder: each flaw with its remedy."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tqdm import tqdm

SAMPLE = 200  # images and masks that are opened unless a number is asked for


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
    """Print findings as they come; whether everything is as expected."""
    wrong = 0
    for finding in findings:
        print(("ok     " if not finding.remedy else "WRONG  ") + finding.text)
        if finding.remedy:
            wrong += 1
            print(f"       -> {finding.remedy}")
    print("everything is as expected" if not wrong else f"{wrong} thing{'s'[: wrong > 1]} to correct")
    return not wrong


def first_of(names: Iterable[str]) -> str:
    """The first three names, sorted."""
    names = sorted(names)
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


def draw(items: list, count: int | None) -> Iterator:
    """A sample, the same each time, with a progress bar; None for `SAMPLE`."""
    drawn = random.Random(0).sample(items, min(SAMPLE if count is None else count, len(items)))
    yield from tqdm(drawn, "opening a sample", unit="image", leave=False, disable=len(drawn) < 20)
