"""Does each claim of the paper hold? The comparisons and the verdicts, from the files of runs.

    python -m hsnet.reproduce claims --dry-run     which runs there are
    python -m hsnet.reproduce claims               train and test those that are not done
    PYTHONPATH=book python -m kit.claims           what some comparisons need beyond the tests

Everything is on the embedded benchmark, two folds, every run with the same number of training episodes, at 288 px, where
the squeezed support has 2 × 2 positions and every weight learns.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ..benchmarks.emoji import UNSEEN_ARTIST
from ..metrics import SegmentationScore
from ..runs import markdown
from ..runs import runs_table as table_of_runs
from .experiments import CLAIMS_FOLDS, PUBLISHED, Experiment, expected_hours, state
from .experiments import claims as claimed_runs

SHOTS = (1, 2, 3, 5, 10)
RULES = ("paper", "majority")
RUN_COLUMNS = (
    "fold",
    "seed",
    "1-shot mIoU [95 %]",
    "episodes seen",
    "training",
    "learned values",
    "peak memory",
    "computed by",
)
VERDICTS = ("holds", "does not hold here", "too close to call")
SIZES = {"small": (0.0, 0.06), "middle-sized": (0.06, 0.15), "large": (0.15, 1.0)}  # a target's share of the scene
BACKGROUNDS = ("its own", "stripes and chequers")

Score = Callable[[int], SegmentationScore | None]  # of a fold; None where it was not run


@dataclass(frozen=True)
class Comparison:
    """One line of the table: of two scores on the same episodes the first is claimed to be the higher.

    Attributes:
        claim: its number in the table.
        text: what is claimed.
        better, worse: the two scores.
    """

    claim: int
    text: str
    better: Score
    worse: Score


def _read(run, name):
    path = run.folder / name
    return json.loads(path.read_text()) if path.exists() else None


def published(fold: int) -> Experiment:
    """The run of the published network."""
    return _run(PUBLISHED, fold)


def _run(variant, fold):
    return next(r for r in claimed_runs() if (r.variant, r.config.fold, r.config.seed) == (variant, fold, 0))


def _test(variant: str = PUBLISHED, who: str = "HSNet", keep: Callable[[float, int, str], bool] | None = None) -> Score:
    """The 1-shot test of a run; of some episodes where `keep` says so of their share, distractors and artist."""

    def score(fold):
        run = _run(variant, fold)
        test, episodes = run.tests().get(1), keep and _read(run, "episodes.json")
        if test is None or (keep and episodes is None):
            return None
        rows = test["areas"][who]
        if keep:
            rows = [row for row, episode in zip(rows, episodes["episodes"], strict=True) if keep(*episode)]
        return SegmentationScore.from_rows(rows, resample_classes=True)

    return score


def _measured(name: str, **which) -> Score:
    """A score of one of the files that `kit.claims` measures on the published network, by its other entries."""

    def score(fold):
        content = _read(published(fold), name)
        if content is None:
            return None
        row = next(row for row in content["scores"] if which.items() <= row.items())
        return SegmentationScore.from_rows(row["areas"], resample_classes=True)

    return score


DESIGNS = (
    (1, "center-pivot above separable kernels", PUBLISHED, "separable 4D kernels"),
    (1, "separable above original (dense) kernels", "separable 4D kernels", "original 4D kernels"),
    (1, "center-pivot above original (dense) kernels", PUBLISHED, "original 4D kernels"),
    (2, "support features masked above not masked", PUBLISHED, "no support masking"),
    (3, "all layers above one deep layer per level", PUBLISHED, "one deep layer per level"),
    (3, "one deep above one shallow layer per level", "one deep layer per level", "one shallow layer per level"),
    (4, "three levels above two", PUBLISHED, "two deepest levels"),
    (4, "two levels above the deepest alone", "two deepest levels", "deepest level alone"),
    (5, "three convolutions a block above two", PUBLISHED, "two 4D convolutions per block"),
    (5, "two convolutions a block above one", "two 4D convolutions per block", "one 4D convolution per block"),
)


def comparisons() -> list[Comparison]:
    """All of them, in the order of the paper's claims."""
    lines = [Comparison(claim, text, _test(better), _test(worse)) for claim, text, better, worse in DESIGNS]
    for fewer, more in pairwise(SHOTS):
        pair = [_measured("shots.json", shot=k, rule="paper") for k in (more, fewer)]
        lines.append(Comparison(6, f"{more} supports above {fewer}, the paper's vote", *pair))
    pair = [_measured("shots.json", shot=5, rule=rule) for rule in RULES]
    lines.append(Comparison(6, "5 supports: the paper's vote above the majority's", *pair))

    def above_prototypes(claim, text, keep=None):
        lines.append(Comparison(claim, text, *(_test(who=who, keep=keep) for who in ("HSNet", "prototypes"))))

    above_prototypes(7, "HSNet above prototypes")
    for name, (low, high) in SIZES.items():
        text = f"… on {name} objects ({low:.0%} to {high:.0%} of the query)"
        above_prototypes(7, text, lambda share, distractors, artist, low=low, high=high: low <= share < high)
    for n in (1, 2, 3, 4):
        text = f"… with {n} distractor{'s'[: n > 1]}"
        above_prototypes(7, text, lambda share, distractors, artist, n=n: distractors == n)
    text = "HSNet above prototypes on the unseen artist"
    above_prototypes(8, text, lambda share, distractors, artist: artist == UNSEEN_ARTIST)
    pair = [_measured("backgrounds.json", backgrounds=BACKGROUNDS[1], who=who) for who in ("HSNet", "prototypes")]
    lines.append(Comparison(8, "HSNet above prototypes on unseen backgrounds", *pair))
    lines.append(
        Comparison(9, "a frozen backbone above one that is trained too", _test(), _test("backbone trained too"))
    )
    return lines


def verdict(differences: Sequence[float], intervals: Sequence[tuple[float, float]], spread: float) -> str:
    """Whether a claim holds: a rule, so that nobody has to be believed.

    Args:
        differences: better minus worse in each fold.
        intervals: the paired bootstrap interval of each.
        spread: by how much the published network's score differs between training seeds.
    """
    smallest = min(abs(d) for d in differences)
    if smallest > spread and all(low > 0 for low, _ in intervals):
        return "holds"
    if smallest > spread and all(high < 0 for _, high in intervals):
        return "does not hold here"
    return "too close to call"


def seed_spread() -> float | None:
    """The largest difference, over folds, between two trainings of the published network that differ in their seed."""
    by_fold: dict[int, list[float]] = {}
    for run in claimed_runs():
        if run.variant == PUBLISHED:
            if (test := run.tests().get(1)) is None:
                return None
            by_fold.setdefault(run.config.fold, []).append(test["scores"]["HSNet"]["miou"])
    return max(max(scores) - min(scores) for scores in by_fold.values())


@dataclass(frozen=True)
class Finding:
    """What the runs say of a comparison so far.

    Attributes:
        line: the comparison.
        scores: by fold, the mIoU that is claimed to be the higher, and the other; folds that were not run are absent.
        intervals: by fold, the paired 95 % interval of their difference.
        verdict: see `verdict`; empty until all folds and the spread over seeds are there.
    """

    line: Comparison
    scores: dict[int, tuple[float, float]]
    intervals: dict[int, tuple[float, float]]
    verdict: str


def findings() -> list[Finding]:
    """Every comparison with what was measured, in their order."""
    spread, found = seed_spread(), []
    for line in comparisons():
        pairs = {fold: (line.better(fold), line.worse(fold)) for fold in CLAIMS_FOLDS}
        pairs = {fold: pair for fold, pair in pairs.items() if None not in pair}
        scores = {fold: (better.miou(), worse.miou()) for fold, (better, worse) in pairs.items()}
        intervals = {fold: better.interval_above(worse) for fold, (better, worse) in pairs.items()}
        complete = len(pairs) == len(CLAIMS_FOLDS) and spread is not None
        differences = [better - worse for better, worse in scores.values()]
        text = verdict(differences, list(intervals.values()), spread) if complete else ""
        found.append(Finding(line, scores, intervals, text))
    return found


def verdicts_table() -> str:
    """Markdown: each comparison with its scores, the paired differences and the verdict; "–" where it was not run."""
    rows = []
    for found in findings():
        by_fold = {
            fold: f"{better:.1f} − {worse:.1f} = {better - worse:.1f} [{{:.1f}}, {{:.1f}}]".format(
                *found.intervals[fold]
            )
            for fold, (better, worse) in found.scores.items()
        }
        scores = (by_fold.get(fold) for fold in CLAIMS_FOLDS)
        rows.append([str(found.line.claim), found.line.text, *scores, found.verdict or None])
    return markdown(["", "claim", *(f"fold {f}: mIoU, difference [95 %]" for f in CLAIMS_FOLDS), "verdict"], rows)


def marks() -> dict[str, tuple[list[tuple[int, float, tuple[float, float]]], str]]:
    """What a figure shows of every comparison.

    Returns:
        By number and text of the claim: (fold, difference in points, its interval) for each fold that was run; the verdict.
    """
    return {
        f"{found.line.claim}  {found.line.text}": (
            [(fold, better - worse, found.intervals[fold]) for fold, (better, worse) in found.scores.items()],
            found.verdict,
        )
        for found in findings()
    }


def progress() -> str:
    """How many of the runs are done, how many verdicts of each kind there are, and the command that fills the rest."""
    runs = claimed_runs()
    left = [run for run in runs if state(run).kind != "done"]
    counted = Counter(one.verdict for one in findings())
    verdicts = ", ".join(f"{name}: {counted[name]}" for name in VERDICTS)
    text = f"{len(runs) - len(left)} of {len(runs)} runs are done. Verdicts: {verdicts}."
    if left:
        hours = max(1, round(sum(expected_hours(run.config) for run in left)))
        text += (
            f" `python -m hsnet.reproduce claims` trains and tests the others: about {hours} hour{'s'[: hours != 1]} "
            "of two cores that compute in bfloat16."
        )
    return text


def runs_table() -> str:
    """Markdown: the runs of the comparisons: score, episodes seen, time, learned values, memory; "–" where not run."""
    return table_of_runs([(run.variant or "as published", run.folder) for run in claimed_runs()], RUN_COLUMNS)


def tables() -> str:
    """Markdown: both."""
    return f"{runs_table()}\n\n{verdicts_table()}"
