"""Does each claim of the paper hold? The comparisons, what they need beyond training, and the verdicts.

    python -m hsnet.reproduce claims --dry-run     which runs there are
    python -m hsnet.reproduce claims               train, test and measure what is missing

Everything is on the embedded benchmark, two folds, every run with the same number of training episodes, at 288 px, where
the squeezed support has 2 × 2 positions and every weight learns.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..benchmarks import Emoji
from ..benchmarks.drawn import DrawnBenchmark
from ..benchmarks.emoji import UNSEEN_ARTIST
from ..benchmarks.scenes import Scene
from ..config import Config
from ..devices import choose_device, choose_precision
from ..engine import choose_workers, fit_prototypes, predictor
from ..episodes import EpisodeDataset, test_episodes
from ..metrics import SegmentationScore
from ..model import HSNet, vote
from ..runs import markdown, write_json
from .experiments import Experiment, expected_hours, state
from .experiments import claims as claimed_runs

SHOTS = (1, 2, 3, 5, 10)
RULES = ("paper", "majority")
EPISODES = 300  # of what is measured beyond the tests
VERDICTS = ("holds", "does not hold here", "too close to call")
BASE = ""  # the variant that is the published network
SIZES = ((0.0, 0.06), (0.06, 0.15), (0.15, 1.0))  # of a target: small, middle, large; shares of the scene


# What is measured on the published network beyond the tests: each writes one file into the run's folder.


class OtherBackgrounds(DrawnBenchmark):
    """A benchmark's scenes with backgrounds of a kind that training never shows: stripes and chequers of two colours."""

    def __init__(self, benchmark: DrawnBenchmark):
        super().__init__(benchmark.size)
        self.name, self.class_names, self.benchmark = benchmark.name, benchmark.class_names, benchmark

    def artists(self, class_id: int, split: str) -> list[str]:
        """The benchmark's."""
        return self.benchmark.artists(class_id, split)

    def cutout(self, class_id: int, artist: str, rng: np.random.Generator) -> np.ndarray:
        """The benchmark's."""
        return self.benchmark.cutout(class_id, artist, rng)

    def related(self, class_id: int) -> set[int]:
        """The benchmark's."""
        return self.benchmark.related(class_id)

    def fold_of(self, class_id: int) -> int:
        """The benchmark's."""
        return self.benchmark.fold_of(class_id)

    def scene(self, name: str) -> Scene:
        """The scene called `name`, its background replaced: objects and masks are the same."""
        scene = self.benchmark.scene(name)
        rng = np.random.default_rng([2, int(name.rsplit(".", 1)[-1])])
        y, x = np.mgrid[: self.size, : self.size] / self.size
        angle, period = rng.uniform(0, np.pi), rng.uniform(0.04, 0.2)
        first = np.floor((x * np.cos(angle) + y * np.sin(angle)) / period)
        second = np.floor((y * np.cos(angle) - x * np.sin(angle)) / period) if rng.random() < 0.5 else 0
        colours = rng.integers(0, 256, (2, 3), dtype=np.uint8)
        pattern = colours[((first + second) % 2).astype(int)]
        # Soft edges, as drawings have.
        objects = Image.fromarray(np.where(scene.labels > 0, 255, 0).astype(np.uint8))
        share = np.asarray(
            objects.resize((self.size // 2,) * 2, Image.Resampling.BOX).resize(objects.size, Image.Resampling.BILINEAR)
        )
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
        with torch.no_grad(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            query = model.backbone(model.backbone.normalize(batch.query))
            support = model.backbone(model.backbone.normalize(batch.support.flatten(0, 1)))
            logits = model.logits_from_features(query, support, batch.support_mask, batch.query_mask.shape[-2:])
            masks = torch.stack([one[:, 1] > one[:, 0] for one in logits], dim=1)
        for (k, rule), score in scores.items():
            score.update(vote(masks[:, :k], rule).cpu(), batch.query_mask.cpu(), batch.class_id.cpu())
    rows = [{"shot": k, "rule": rule, **s.summary(), "areas": s.rows} for (k, rule), s in scores.items()]
    return {"digest": benchmark.digest(), "scores": rows}


def measure_backgrounds(model: HSNet, config: Config, benchmark: DrawnBenchmark) -> dict:
    """The first test episodes as they are, and on backgrounds of another kind: the network and the prototypes."""
    device = choose_device(config.device)
    prototypes = fit_prototypes(model, config, benchmark, device)
    predict = predictor(model, device, choose_precision(config.precision, device), prototypes)
    episodes = test_episodes(benchmark, fold=config.fold, shot=1, count=EPISODES)
    rows = []
    for name, kind in (("its own", benchmark), ("stripes and chequers", OtherBackgrounds(benchmark))):
        scores = {who: _score(benchmark, config) for who in ("HSNet", "prototypes")}
        for batch in _batches(kind, config, episodes, f"backgrounds: {name}"):
            for who, mask in predict(batch).items():
                scores[who].update(mask, batch.query_mask, batch.class_id)
        rows += [{"backgrounds": name, "who": who, **s.summary(), "areas": s.rows} for who, s in scores.items()]
    return {"digest": benchmark.digest(), "scores": rows}


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


def _of_variant(variant: str, who: str = "HSNet", seed: int = 0, keep: Callable | None = None):
    """The 1-shot test of a run; of some episodes where `keep` says so."""

    def score(fold):
        experiment = next(
            c for c in claimed_runs() if (c.variant, c.config.fold, c.config.seed) == (variant, fold, seed)
        )
        test = experiment.tests().get(1)
        if test is None:
            return None
        rows = test["areas"][who]
        if keep is not None:
            episodes = _read(experiment, "episodes.json")
            if episodes is None:
                return None
            rows = [row for row, episode in zip(rows, episodes["episodes"], strict=True) if keep(*episode)]
        return _from_rows(rows)

    return score


def _of_file(name: str, **which):
    """A score of one of the `more` files of the published network, by its other entries."""

    def score(fold):
        experiment = next(c for c in claimed_runs() if (c.variant, c.config.fold, c.config.seed) == (BASE, fold, 0))
        content = _read(experiment, name)
        if content is None:
            return None
        return _from_rows(next(r for r in content["scores"] if all(r[k] == v for k, v in which.items()))["areas"])

    return score


def _read(experiment, name):
    path = experiment.folder / name
    return json.loads(path.read_text()) if path.exists() else None


def _from_rows(rows):
    return SegmentationScore.from_rows(rows, resample_classes=True)


def comparisons() -> list[Comparison]:
    """All of them, in the order of the paper's claims."""

    def runs(claim, text, better, worse):
        return Comparison(claim, text, _of_variant(better), _of_variant(worse))

    def sized(low, high):
        return lambda share, distractors, artist: low <= share < high

    lines = [
        runs(1, "center-pivot above separable kernels", BASE, "separable 4D kernels"),
        runs(1, "separable above original (dense) kernels", "separable 4D kernels", "original 4D kernels"),
        runs(1, "center-pivot above original (dense) kernels", BASE, "original 4D kernels"),
        runs(2, "support features masked above not masked", BASE, "no support masking"),
        runs(3, "all layers above one deep layer per level", BASE, "one deep layer per level"),
        runs(
            3, "one deep above one shallow layer per level", "one deep layer per level", "one shallow layer per level"
        ),
        runs(4, "three levels above two", BASE, "two deepest levels"),
        runs(4, "two levels above the deepest alone", "two deepest levels", "deepest level alone"),
        runs(5, "three convolutions a block above two", BASE, "two 4D convolutions per block"),
        runs(5, "two convolutions a block above one", "two 4D convolutions per block", "one 4D convolution per block"),
    ]
    for more, fewer in zip(SHOTS[1:], SHOTS, strict=False):
        text = f"{more} supports above {fewer}, the paper's vote"
        by_shot = [_of_file("shots.json", shot=k, rule="paper") for k in (more, fewer)]
        lines.append(Comparison(6, text, *by_shot))
    by_rule = [_of_file("shots.json", shot=5, rule=rule) for rule in RULES]
    lines.append(Comparison(6, "5 supports: the paper's vote above the majority's", *by_rule))
    lines.append(Comparison(7, "HSNet above prototypes", _of_variant(BASE), _of_variant(BASE, "prototypes")))
    for name, (low, high) in zip(("small", "middle-sized", "large"), SIZES, strict=True):
        text = f"… on {name} objects ({low:.0%} to {high:.0%} of the query)"
        pair = [_of_variant(BASE, who, keep=sized(low, high)) for who in ("HSNet", "prototypes")]
        lines.append(Comparison(7, text, *pair))
    for n in (1, 2, 3, 4):
        pair = [_of_variant(BASE, who, keep=lambda s, d, a, n=n: d == n) for who in ("HSNet", "prototypes")]
        lines.append(Comparison(7, f"… with {n} distractor{'s'[: n > 1]}", *pair))
    pair = [_of_variant(BASE, who, keep=lambda s, d, a: a == UNSEEN_ARTIST) for who in ("HSNet", "prototypes")]
    lines.append(Comparison(8, "HSNet above prototypes on the unseen artist", *pair))
    pair = [_of_file("backgrounds.json", backgrounds="stripes and chequers", who=w) for w in ("HSNet", "prototypes")]
    lines.append(Comparison(8, "HSNet above prototypes on unseen backgrounds", *pair))
    lines.append(runs(9, "a frozen backbone above one that is trained too", BASE, "backbone trained too"))
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
    published = [c for c in claimed_runs() if c.variant == BASE]
    by_fold: dict[int, list[float]] = {}
    for experiment in published:
        if (test := experiment.tests().get(1)) is None:
            return None
        by_fold.setdefault(experiment.config.fold, []).append(test["scores"]["HSNet"]["miou"])
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
    folds = sorted({experiment.config.fold for experiment in claimed_runs()})
    spread = seed_spread()
    found = []
    for line in comparisons():
        pairs = {fold: (line.better(fold), line.worse(fold)) for fold in folds}
        pairs = {fold: pair for fold, pair in pairs.items() if None not in pair}
        scores = {fold: (better.miou(), worse.miou()) for fold, (better, worse) in pairs.items()}
        intervals = {fold: better.interval_above(worse) for fold, (better, worse) in pairs.items()}
        complete = len(pairs) == len(folds) and spread is not None
        differences = [better - worse for better, worse in scores.values()]
        text = verdict(differences, list(intervals.values()), spread) if complete else ""
        found.append(Finding(line, scores, intervals, text))
    return found


def verdicts_table() -> str:
    """Markdown: each comparison that was made in a fold at least, with its scores, the paired differences and the verdict."""
    folds = sorted({experiment.config.fold for experiment in claimed_runs()})
    rows, missing = [], []
    for found in findings():
        if not found.scores:
            missing.append(f"{found.line.text} ({found.line.claim})")
            continue
        columns = []
        for fold in folds:
            if fold not in found.scores:
                columns.append("–")
                continue
            (better, worse), (low, high) = found.scores[fold], found.intervals[fold]
            columns.append(f"{better:.1f} − {worse:.1f} = {better - worse:.1f} [{low:.1f}, {high:.1f}]")
        rows.append([str(found.line.claim), found.line.text, *columns, found.verdict or "–"])
    header = ["", "claim", *(f"fold {f}: mIoU, difference [95 %]" for f in folds), "verdict"]
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
    experiments = claimed_runs()
    left = [experiment for experiment in experiments if state(experiment).kind != "done"]
    done = f"{len(experiments) - len(left)} of {len(experiments)} runs are done"
    counted = Counter(found.verdict for found in findings() if found.verdict)
    lines = f"{counted.total()} of {len(comparisons())} comparisons have a verdict"
    if counted:
        lines += f" ({', '.join(f'{name}: {counted[name]}' for name in VERDICTS)})"
    if not left:
        return f"{done}; {lines}."
    hours = max(1, round(sum(expected_hours(experiment.config) for experiment in left)))
    return (
        f"{done}; {lines}. `python -m hsnet.reproduce claims` trains, tests and measures what is missing: about "
        f"{hours} hour{'s'[: hours != 1]} of two cores that compute in bfloat16. It may be stopped and started again at any time."
    )


def runs_table() -> str:
    """Markdown: the runs of the comparisons that were made: score, episodes seen, time, learned values, memory."""
    rows, missing, precisions = [], [], set()
    for experiment in claimed_runs():
        test, history = experiment.tests().get(1), experiment.history()
        name = experiment.variant or "as published"
        if test is None or not history:
            missing.append(
                f"{name}, fold {experiment.config.fold}"
                + f", seed {experiment.config.seed}" * bool(experiment.config.seed)
            )
            continue
        score = test["scores"]["HSNet"]
        low, high = score["interval"]
        precisions.add(test["precision"])
        rows.append(
            [
                name,
                str(experiment.config.fold),
                str(experiment.config.seed),
                f"{score['miou']:.1f} [{low:.1f}, {high:.1f}]",
                f"{len(history) * experiment.config.epoch_episodes:,}",
                f"{history[-1]['seconds'] / 60:.0f} min",
                f"{test['parameters']:,}",
                f"{history[-1]['peak_bytes'] / 1e9:.2f} GB",
                test["device"],
            ]
        )
    header = [
        "run",
        "fold",
        "seed",
        "1-shot mIoU [95 %]",
        "episodes seen",
        "training",
        "learned values",
        "peak memory",
        "computed by",
    ]
    table = markdown(header, rows) + f"\n\nComputed in {' and '.join(sorted(precisions))}." * bool(rows)
    return _with_missing(table, "Not run yet", missing)


def tables() -> str:
    """Markdown: both."""
    return f"{runs_table()}\n\n{verdicts_table()}"
