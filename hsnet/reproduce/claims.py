"""Does each claim of the paper hold? The comparisons, what they need beyond training, and the verdicts.

    python -m hsnet.reproduce claims --dry-run     which runs there are
    python -m hsnet.reproduce claims               train, test and measure what is missing

Everything is on the embedded benchmark, two folds, every run with the same number of training episodes, at 288 px, where
the squeezed support has 2 × 2 positions and every weight learns.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..benchmarks.drawn import DrawnBenchmark
from ..benchmarks.emoji import UNSEEN_ARTIST, Emoji
from ..benchmarks.scenes import Scene
from ..config import Config
from ..devices import choose_device, choose_precision, computing_in
from ..engine import choose_workers, fit_prototypes, predictor
from ..episodes import EpisodeDataset, test_episodes
from ..metrics import SegmentationScore
from ..model import HSNet, vote
from ..runs import markdown, write_json
from ..runs import runs_table as table_of_runs
from .experiments import CLAIMS_FOLDS, PUBLISHED, Experiment, expected_hours, state
from .experiments import claims as claimed_runs

SHOTS = (1, 2, 3, 5, 10)
RULES = ("paper", "majority")
EPISODES = 300  # of what is measured beyond the tests
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
SIZES = ((0.0, 0.06), (0.06, 0.15), (0.15, 1.0))  # of a target: small, middle, large; shares of the scene
BACKGROUNDS = ("its own", "stripes and chequers")


# What is measured on the published network beyond the tests: each writes one file into the run's folder.


def on_other_backgrounds(benchmark: DrawnBenchmark) -> DrawnBenchmark:
    """The benchmark with backgrounds of a kind that training never shows: stripes and chequers of two colours.

    Objects and masks of its scenes are the same.
    """
    other = copy(benchmark)
    other.scene = partial(_on_pattern, benchmark)
    return other


def _on_pattern(benchmark: DrawnBenchmark, name: str) -> Scene:
    scene, size = benchmark.scene(name), benchmark.size
    rng = np.random.default_rng([2, int(name.rsplit(".", 1)[-1])])
    y, x = np.mgrid[:size, :size] / size
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.04, 0.2)
    first = np.floor((x * np.cos(angle) + y * np.sin(angle)) / period)
    second = np.floor((y * np.cos(angle) - x * np.sin(angle)) / period) if rng.random() < 0.5 else 0
    colours = rng.integers(0, 256, (2, 3), dtype=np.uint8)
    pattern = colours[((first + second) % 2).astype(int)]
    # Soft edges, as drawings have.
    objects = Image.fromarray(np.where(scene.labels > 0, 255, 0).astype(np.uint8))
    half = objects.resize((size // 2,) * 2, Image.Resampling.BOX)
    share = np.asarray(half.resize(objects.size, Image.Resampling.BILINEAR))
    share = np.where(scene.labels > 0, 255, share // 2).astype(np.float32)[..., None] / 255
    return Scene((share * scene.image + (1 - share) * pattern).astype(np.uint8), scene.labels)


def measure_shots(model: HSNet, config: Config, benchmark: DrawnBenchmark) -> dict:
    """The same queries with the first K of ten supports each, for each K and vote rule."""
    device = choose_device(config.device)
    dtype = choose_precision(config.precision, device)
    episodes = test_episodes(benchmark, fold=config.fold, shot=max(SHOTS), count=EPISODES)
    scores = {(k, rule): _score(benchmark, config) for k in SHOTS for rule in RULES}
    for batch in _batches(benchmark, config, episodes, "K-shot", batch=1):
        batch = batch.to(device)
        with torch.no_grad(), computing_in(dtype, device):
            query = model.backbone(model.backbone.normalize(batch.query))
            support = model.backbone(model.backbone.normalize(batch.support.flatten(0, 1)))
            logits = model.logits_from_features(query, support, batch.support_mask, batch.query_mask.shape[-2:])
            masks = torch.stack([one[:, 1] > one[:, 0] for one in logits], dim=1)
        for (k, rule), score in scores.items():
            score.update(vote(masks[:, :k], rule).cpu(), batch.query_mask.cpu(), batch.class_id.cpu())
    return _content(benchmark, [({"shot": k, "rule": rule}, score) for (k, rule), score in scores.items()])


def measure_backgrounds(model: HSNet, config: Config, benchmark: DrawnBenchmark) -> dict:
    """The first test episodes as they are, and on backgrounds of another kind: the network and the prototypes."""
    device = choose_device(config.device)
    prototypes = fit_prototypes(model, config, benchmark, device)
    predict = predictor(model, device, choose_precision(config.precision, device), prototypes)
    episodes = test_episodes(benchmark, fold=config.fold, shot=1, count=EPISODES)
    found = []
    for name, drawn in zip(BACKGROUNDS, (benchmark, on_other_backgrounds(benchmark)), strict=True):
        scores = {who: _score(benchmark, config) for who in ("HSNet", "prototypes")}
        for batch in _batches(drawn, config, episodes, f"backgrounds: {name}"):
            for who, mask in predict(batch).items():
                scores[who].update(mask, batch.query_mask, batch.class_id)
        found += [({"backgrounds": name, "who": who}, score) for who, score in scores.items()]
    return _content(benchmark, found)


def measure_episodes(model: HSNet, config: Config, benchmark: DrawnBenchmark) -> dict:
    """What each test episode is like: the target's share of the query, the number of distractors, who drew the query."""
    episodes = test_episodes(benchmark, fold=config.fold, shot=1, count=config.test_episodes)
    rows = []
    for episode in tqdm(episodes, desc="test scenes", unit="scene", leave=False):
        share = float(benchmark.read(episode.query, episode.class_id).mask.mean())
        objects = benchmark.objects(episode.query)
        rows.append([round(share, 5), len(objects) - 1, objects[0][1]])
    return {"digest": benchmark.digest(), "columns": ["share", "distractors", "artist"], "episodes": rows}


MEASUREMENTS: dict[str, Callable[[HSNet, Config, DrawnBenchmark], dict]] = {
    "episodes.json": measure_episodes,
    "shots.json": measure_shots,
    "backgrounds.json": measure_backgrounds,
}


def _score(benchmark, config):
    return SegmentationScore(benchmark.classes(config.fold, "test"), benchmark.resample_classes)


def _content(benchmark, scores):
    rows = [{**which, **score.summary(), "areas": score.rows} for which, score in scores]
    return {"digest": benchmark.digest(), "scores": rows}


def _batches(benchmark, config, episodes, title, batch=0) -> Iterator:
    dataset = EpisodeDataset(benchmark, config.size, episodes)
    loader = dataset.loader(batch or config.batch, choose_workers(config.workers))
    yield from tqdm(loader, desc=title, unit="batch", leave=False)


def measure(experiment: Experiment) -> None:
    """Write what is missing of an experiment's `more` files."""
    missing = [name for name in experiment.more if not (experiment.folder / name).exists()]
    if missing:
        config = Config.load(experiment.folder / "config.json")
        model = HSNet.from_run(experiment.folder).to(choose_device(config.device)).eval()
        for name in missing:
            write_json(experiment.folder / name, MEASUREMENTS[name](model, config, Emoji(config.size)))


# Verdicts


@dataclass(frozen=True)
class Comparison:
    """One line of the table: of two scores on the same episodes the first is claimed to be the higher.

    Attributes:
        claim: its number in the table.
        text: what is claimed.
        better, worse: a function of the fold that gives the score, or None where it was not run.
    """

    claim: int
    text: str
    better: Callable[[int], SegmentationScore | None]
    worse: Callable[[int], SegmentationScore | None]


def _run(variant, fold, seed=0):
    return next(r for r in claimed_runs() if (r.variant, r.config.fold, r.config.seed) == (variant, fold, seed))


def _of_test(variant: str = PUBLISHED, who: str = "HSNet", keep: Callable[[float, int, str], bool] | None = None):
    """The 1-shot test of a run; of some episodes where `keep` says so of their share, distractors and artist."""

    def score(fold):
        run = _run(variant, fold)
        test, episodes = run.tests().get(1), keep and _read(run, "episodes.json")
        if test is None or (keep and episodes is None):
            return None
        rows = test["areas"][who]
        if keep:
            rows = [row for row, episode in zip(rows, episodes["episodes"], strict=True) if keep(*episode)]
        return _from_rows(rows)

    return score


def _of_file(name: str, **which):
    """A score of one of the `more` files of the published network, by its other entries."""

    def score(fold):
        content = _read(_run(PUBLISHED, fold), name)
        if content is None:
            return None
        return _from_rows(next(r for r in content["scores"] if which.items() <= r.items())["areas"])

    return score


def _read(run, name):
    path = run.folder / name
    return json.loads(path.read_text()) if path.exists() else None


def _from_rows(rows):
    return SegmentationScore.from_rows(rows, resample_classes=True)


def comparisons() -> list[Comparison]:
    """All of them, in the order of the paper's claims."""
    lines = [
        Comparison(claim, text, _of_test(better), _of_test(worse))
        for claim, text, better, worse in (
            (1, "center-pivot above separable kernels", PUBLISHED, "separable 4D kernels"),
            (1, "separable above original (dense) kernels", "separable 4D kernels", "original 4D kernels"),
            (1, "center-pivot above original (dense) kernels", PUBLISHED, "original 4D kernels"),
            (2, "support features masked above not masked", PUBLISHED, "no support masking"),
            (3, "all layers above one deep layer per level", PUBLISHED, "one deep layer per level"),
            (
                3,
                "one deep above one shallow layer per level",
                "one deep layer per level",
                "one shallow layer per level",
            ),
            (4, "three levels above two", PUBLISHED, "two deepest levels"),
            (4, "two levels above the deepest alone", "two deepest levels", "deepest level alone"),
            (5, "three convolutions a block above two", PUBLISHED, "two 4D convolutions per block"),
            (5, "two convolutions a block above one", "two 4D convolutions per block", "one 4D convolution per block"),
        )
    ]
    for more, fewer in zip(SHOTS[1:], SHOTS, strict=False):
        pair = [_of_file("shots.json", shot=k, rule="paper") for k in (more, fewer)]
        lines.append(Comparison(6, f"{more} supports above {fewer}, the paper's vote", *pair))
    pair = [_of_file("shots.json", shot=5, rule=rule) for rule in RULES]
    lines.append(Comparison(6, "5 supports: the paper's vote above the majority's", *pair))

    def above_prototypes(claim, text, keep=None):
        lines.append(Comparison(claim, text, *(_of_test(who=who, keep=keep) for who in ("HSNet", "prototypes"))))

    above_prototypes(7, "HSNet above prototypes")
    for name, (low, high) in zip(("small", "middle-sized", "large"), SIZES, strict=True):
        text = f"… on {name} objects ({low:.0%} to {high:.0%} of the query)"
        above_prototypes(7, text, lambda share, distractors, artist, low=low, high=high: low <= share < high)
    for n in (1, 2, 3, 4):
        text = f"… with {n} distractor{'s'[: n > 1]}"
        above_prototypes(7, text, lambda share, distractors, artist, n=n: distractors == n)
    text = "HSNet above prototypes on the unseen artist"
    above_prototypes(8, text, lambda share, distractors, artist: artist == UNSEEN_ARTIST)
    pair = [_of_file("backgrounds.json", backgrounds=BACKGROUNDS[1], who=who) for who in ("HSNet", "prototypes")]
    lines.append(Comparison(8, "HSNet above prototypes on unseen backgrounds", *pair))
    pair = _of_test(), _of_test("backbone trained too")
    lines.append(Comparison(9, "a frozen backbone above one that is trained too", *pair))
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
    spread = seed_spread()
    found = []
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
    """Markdown: each comparison that was made in a fold at least, with its scores, the paired differences and the verdict."""
    rows, missing = [], []
    for found in findings():
        if not found.scores:
            missing.append(f"{found.line.text} ({found.line.claim})")
            continue
        by_fold = {
            fold: f"{better:.1f} − {worse:.1f} = {better - worse:.1f} [{{:.1f}}, {{:.1f}}]".format(
                *found.intervals[fold]
            )
            for fold, (better, worse) in found.scores.items()
        }
        scores = (by_fold.get(fold, "–") for fold in CLAIMS_FOLDS)
        rows.append([str(found.line.claim), found.line.text, *scores, found.verdict or "–"])
    header = ["", "claim", *(f"fold {f}: mIoU, difference [95 %]" for f in CLAIMS_FOLDS), "verdict"]
    return _with_missing(markdown(header, rows), "Not compared yet", missing)


def _with_missing(table, title, missing):
    """The table, and under it what it does not have."""
    return table + (f"\n\n{title}: {'; '.join(missing)}." if missing else "")


def marks() -> dict[str, tuple[list[tuple[int, float, tuple[float, float]]], str]]:
    """What a figure shows of every comparison that was made in a fold at least; if none was, of all of them.

    Returns:
        By number and text of the claim: (fold, difference in points, its interval) for each fold; and the verdict.
    """
    every = findings()
    return {
        f"{found.line.claim}  {found.line.text}": (
            [(fold, better - worse, found.intervals[fold]) for fold, (better, worse) in found.scores.items()],
            found.verdict,
        )
        for found in [f for f in every if f.scores] or every
    }


def progress() -> str:
    """How many of the runs are done, the verdicts, what is missing, and the command that fills it: rendered."""
    runs = claimed_runs()
    left = [run for run in runs if state(run).kind != "done"]
    found = findings()
    counted = Counter(one.verdict for one in found if one.verdict)
    text = f"{len(runs) - len(left)} of {len(runs)} runs are done; "
    text += f"{counted.total()} of {len(found)} comparisons have a verdict"
    text += f" ({', '.join(f'{name}: {counted[name]}' for name in VERDICTS)})" * bool(counted)
    if not left:
        return f"{text}."
    hours = max(1, round(sum(expected_hours(run.config) for run in left)))
    return (
        f"{text}. `python -m hsnet.reproduce claims` trains, tests and measures what is missing: about "
        f"{hours} hour{'s'[: hours != 1]} of two cores that compute in bfloat16. It may be stopped and started again at any time."
    )


def runs_table() -> str:
    """Markdown: the runs of the comparisons that were made: score, episodes seen, time, learned values, memory."""
    found, missing, precisions = [], [], set()
    for experiment in claimed_runs():
        config, test, name = experiment.config, experiment.tests().get(1), experiment.variant or "as published"
        if test is None or not experiment.history():
            missing.append(f"{name}, fold {config.fold}" + f", seed {config.seed}" * bool(config.seed))
            continue
        precisions.add(test["precision"])
        found.append((name, experiment.folder))
    table = table_of_runs(found, RUN_COLUMNS) + f"\n\nComputed in {' and '.join(sorted(precisions))}." * bool(found)
    return _with_missing(table, "Not run yet", missing)


def tables() -> str:
    """Markdown: both."""
    return f"{runs_table()}\n\n{verdicts_table()}"
