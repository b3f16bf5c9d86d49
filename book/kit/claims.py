"""Does each claim of the paper hold on the embedded benchmark? The comparisons and verdicts of chapter 13, from the files of runs.

    python -m hsnet.reproduce claims           train and test the runs that are not done
    PYTHONPATH=book python -m kit.claims       measure what some comparisons need beyond tests, and print the verdicts

Two folds; every run has the same number of training episodes, at 288 px, where the squeezed support has 2 × 2 positions and every
weight learns. Each measurement writes one file into the published network's folder; what is there is kept.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from PIL import Image
from scipy.stats import chi2
from tqdm import tqdm

from hsnet import HSNet, SegmentationScore, test_episodes, vote
from hsnet.averaging import features_of
from hsnet.benchmarks.drawn import DrawnBenchmark
from hsnet.benchmarks.emoji import UNSEEN_ARTIST, Emoji
from hsnet.benchmarks.scenes import Scene
from hsnet.config import Config, run_program
from hsnet.devices import choose_device, choose_precision, computing_in
from hsnet.engine import evaluate_run, fit_prototypes, predictor
from hsnet.reproduce.experiments import CLAIMS_FOLDS, PUBLISHED, Experiment, claims, expected_hours, read_paper, state
from hsnet.runs import markdown, read_history, write_json

EPISODES = 300  # of each measurement
SHOTS = (1, 2, 3, 5, 10)
RULES = ("paper", "majority")
SIZES = {"small": (0.0, 0.06), "middle-sized": (0.06, 0.15), "large": (0.15, 1.0)}  # a target's share of the scene
BACKGROUNDS = ("its own", "stripes and chequers")
VERDICTS = ("holds", "does not hold here", "too close to call")
KINDS = {  # claims by what their comparisons vary
    "designs of the network": (1, 2, 3, 4, 5, 9),
    "numbers of supports and votes": (6,),
    "HSNet beside prototypes": (7, 8),
}
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
# Ablation, better, worse, the paper's variants (a number of `results.csv`) or its words, lesson.
ABLATIONS = (
    (
        *("center-pivot instead of separable kernels", PUBLISHED, "separable 4D kernels", "higher or about equal"),
        "Accuracy does not decide between the two.",
    ),
    (
        *("center-pivot instead of original 4D kernels", PUBLISHED, "original 4D kernels", "higher or about equal"),
        "A quarter of the learned values is enough for about the same score.",
    ),
    (
        *("support features masked", PUBLISHED, "no support masking", None),
        "Without the mask, the network must guess which object is meant.",
    ),
    (
        *("all layers instead of one deep layer per level", PUBLISHED, "one deep layer per level", None),
        "The paper's gain does not show on drawings. The reason is unknown.",
    ),
    (
        *("one deep instead of one shallow layer per level", "one deep layer per level", "one shallow layer per level"),
        *(None, "Deep layers are the safer choice."),
    ),
    (
        *("three levels instead of the deepest alone", PUBLISHED, "deepest level alone", None),
        "Finer levels than the coarsest are necessary.",
    ),
    (
        *("three 4D convolutions in a block instead of one", PUBLISHED, "one 4D convolution per block"),
        *("higher, up to three", "A block needs more than one."),
    ),
    (
        *("frozen instead of trained backbone", PUBLISHED, "backbone trained too"),
        *(
            "higher: training over-fits",
            "The claim may depend on the data and on the length of training; this was not tested.",
        ),
    ),
)

Score = Callable[[int], SegmentationScore | None]  # of a fold; None where it was not run


def _run(variant: str, fold: int) -> Experiment:
    return next(r for r in claims() if (r.variant, r.config.fold, r.config.seed) == (variant, fold, 0))


def _read(fold: int, name: str) -> dict | None:
    path = _run(PUBLISHED, fold).folder / name
    return json.loads(path.read_text()) if path.exists() else None


def _test(variant: str = PUBLISHED, who: str = "HSNet", keep: Callable[[float, int, str], bool] | None = None) -> Score:
    """The 1-shot test of a run; of some episodes where `keep` selects by share, distractors and artist."""

    def score(fold):
        test, episodes = _run(variant, fold).tests().get(1), keep and _read(fold, "episodes.json")
        if test is None or (keep and episodes is None):
            return None
        rows = test["areas"][who]
        if keep:
            rows = [row for row, episode in zip(rows, episodes["episodes"], strict=True) if keep(*episode)]
        return SegmentationScore.from_rows(rows, resample_classes=True)

    return score


def _measured(name: str, **which) -> Score:
    """A score of one of the files of `MEASUREMENTS`, by its other entries."""

    def score(fold):
        if (content := _read(fold, name)) is None:
            return None
        row = next(row for row in content["scores"] if which.items() <= row.items())
        return SegmentationScore.from_rows(row["areas"], resample_classes=True)

    return score


def comparisons() -> list[tuple[int, str, Score, Score]]:
    """Number and text of each claim, in the paper's order, the score that is claimed to be the higher, and the other."""
    lines = [(claim, text, _test(better), _test(worse)) for claim, text, better, worse in DESIGNS]
    for fewer, more in [*pairwise(SHOTS), (1, 5)]:
        pair = [_measured("shots.json", shot=k, rule="paper") for k in (more, fewer)]
        lines.append((6, f"{more} supports above {fewer}, the paper's vote", *pair))
    pair = [_measured("shots.json", shot=5, rule=rule) for rule in RULES]
    lines.append((6, "5 supports: the paper's vote above the majority's", *pair))
    of_queries: dict[str, Callable[[float, int, str], bool] | None] = {"HSNet above prototypes": None}
    for name, (low, high) in SIZES.items():
        text = f"… on {name} objects ({low:.0%} to {high:.0%} of the query)"
        of_queries[text] = lambda share, distractors, artist, low=low, high=high: low <= share < high
    for n in (1, 2, 3, 4):
        of_queries[f"… with {n} distractor{'s'[: n > 1]}"] = lambda share, distractors, artist, n=n: distractors == n
    unseen = "HSNet above prototypes on the unseen artist"
    of_queries[unseen] = lambda share, distractors, artist: artist == UNSEEN_ARTIST
    both = ("HSNet", "prototypes")
    lines += [(8 if t == unseen else 7, t, *(_test(who=w, keep=keep) for w in both)) for t, keep in of_queries.items()]
    pair = [_measured("backgrounds.json", backgrounds=BACKGROUNDS[1], who=who) for who in both]
    lines.append((8, "HSNet above prototypes on unseen backgrounds", *pair))
    lines.append((9, "a frozen backbone above one that is trained too", _test(), _test("backbone trained too")))
    return lines


def verdict(differences: Sequence[float], intervals: Sequence[tuple[float, float]], spread: float) -> str:
    """Whether a claim holds, by a rule that was fixed before the runs.

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


def seed_differences() -> list[float]:
    """In each fold, the difference between two trainings of the published network that differ in their seed; empty until both exist."""
    by_fold: dict[int, list[float]] = {}
    for run in (run for run in claims() if run.variant == PUBLISHED):
        if (test := run.tests().get(1)) is None:
            return []
        by_fold.setdefault(run.config.fold, []).append(test["scores"]["HSNet"]["miou"])
    return [max(scores) - min(scores) for scores in by_fold.values()]


def seed_spread() -> float | None:
    """The largest of `seed_differences`, in points; None until they exist."""
    return max(seed_differences(), default=None)


def seed_deviation() -> float | None:
    """The largest standard deviation of the difference between two seeds that `seed_differences` leave plausible, in points.

    It is the one-sided 95 % limit of a normal distribution's deviation about zero: the sum of squares, divided by the 5 %
    quantile of chi-squared with one degree of freedom for each pair, under the root.
    """
    pairs = seed_differences()
    return (sum(d * d for d in pairs) / chi2.ppf(0.05, len(pairs))) ** 0.5 if pairs else None


@dataclass(frozen=True)
class Finding:
    """A comparison with its measurements so far.

    Attributes:
        claim, text: as in `comparisons`.
        scores: by fold, the two mIoUs and the paired 95 % interval of their difference; folds that were not run are absent.
        verdict: see `verdict`; empty until all folds and the spread over seeds are there.
        provisional: whether a decided difference is below twice `seed_deviation` in a fold: other seeds could turn it.
    """

    claim: int
    text: str
    scores: dict[int, tuple[float, float, tuple[float, float]]]
    verdict: str
    provisional: bool

    def words(self) -> str:
        """The verdict as a table shows it."""
        return self.verdict + ", provisional" * self.provisional


def _finding(claim: int, text: str, better: Score, worse: Score) -> Finding:
    pairs, spread = {fold: (better(fold), worse(fold)) for fold in CLAIMS_FOLDS}, seed_spread()
    scores = {f: (a.miou(), b.miou(), a.interval_above(b)) for f, (a, b) in pairs.items() if a and b}
    if len(scores) < len(CLAIMS_FOLDS) or spread is None:
        return Finding(claim, text, scores, "", False)
    differences = [a - b for a, b, _ in scores.values()]
    decided = verdict(differences, [interval for _, _, interval in scores.values()], spread)
    small = bool(min(abs(d) for d in differences) < 2 * seed_deviation())
    return Finding(claim, text, scores, decided, decided != VERDICTS[-1] and small)


def findings() -> list[Finding]:
    """Every comparison with what was measured."""
    return [_finding(*line) for line in comparisons()]


def counts_table(every: Sequence[Finding]) -> str:
    """Markdown: how many comparisons of each kind have each verdict, and how many of the decided ones are provisional."""
    rows = []
    for kind, numbers in KINDS.items():
        found = [one for one in every if one.claim in numbers]
        counted = Counter(one.verdict for one in found)
        provisional = sum(one.provisional for one in found)
        rows.append([kind, *(str(counted[name]) for name in VERDICTS), str(provisional), str(counted[""])])
    return markdown(["comparisons of", *VERDICTS, "provisional (of the decided)", "not run"], rows)


def ablations_table() -> str:
    """Markdown: each ablation of the paper with its difference there (ResNet-101, PASCAL-5i, 1-shot), the ones here, and a lesson."""
    printed = {
        row["variant"]: (float(row["value"]), "?" * (row["sources"] == "unconfirmed"))
        for row in read_paper("results")
        if (row["benchmark"], row["backbone"], row["shot"], row["what"]) == ("PASCAL-5i", "ResNet-101", "1", "mean")
    }
    rows = []
    for name, better, worse, words, lesson in ABLATIONS:
        if words is None:
            words = f"{printed[better][0] - printed[worse][0]:+.1f}{printed[worse][1]}"
        found = _finding(0, name, _test(better), _test(worse))
        here = "; ".join(f"{a - b:+.1f} [{low:.1f}, {high:.1f}]" for a, b, (low, high) in found.scores.values())
        rows.append([name, words, here and f"{here}: {found.words() or 'no verdict yet'}", lesson])
    return markdown(["ablation", "paper, points", "here, points in each fold", "lesson"], rows)


def verdicts_table(every: Sequence[Finding]) -> str:
    """Markdown: each comparison with its scores, the paired differences and the verdict; "–" where it was not run."""
    rows = []
    for found in every:
        texts = {
            fold: f"{better:.1f} and {worse:.1f}, {better - worse:+.1f} [{low:+.1f}, {high:+.1f}]".replace("-", "−")
            for fold, (better, worse, (low, high)) in found.scores.items()
        }
        rows.append([str(found.claim), found.text, *map(texts.get, CLAIMS_FOLDS), found.words() or None])
    return markdown(["", "claim", *(f"fold {f}: both mIoUs, difference [95 %]" for f in CLAIMS_FOLDS), "verdict"], rows)


def marks(every: Sequence[Finding]) -> dict[str, tuple[list[tuple[int, float, tuple[float, float]]], str]]:
    """The bars of `kit.figures.differences`: by number and text of the claim, a mark for each fold, and the verdict."""
    return {
        f"{found.claim}  {found.text}": (
            [(fold, better - worse, interval) for fold, (better, worse, interval) in found.scores.items()],
            found.verdict,
        )
        for found in every
    }


def progress() -> str:
    """How many of the runs are done, and the command that fills the rest."""
    runs = claims()
    left = [run for run in runs if state(run).kind != "done"]
    text = f"{len(runs) - len(left)} of {len(runs)} runs are done."
    if left:
        hours = max(1, round(sum(expected_hours(run.config) for run in left)))
        text += (
            f" `python -m hsnet.reproduce claims` trains and tests the others: about {hours} hour{'s'[: hours != 1]} "
            "of two cores that compute in bfloat16."
        )
    return text


def runs_table() -> str:
    """Markdown: the runs of the comparisons: score, episodes seen, time, learned values, memory; "–" where not run."""
    rows = []
    for run in claims():
        test, row = run.tests().get(1), [run.variant or "as published", *[None] * 8]
        if test:
            history, score = read_history(run.folder), test["scores"]["HSNet"]
            row[1:] = [
                str(run.config.fold),
                str(run.config.seed),
                "{miou:.1f} [{interval[0]:.1f}, {interval[1]:.1f}]".format(**score),
                f"{len(history) * run.config.epoch_episodes:,}",
                f"{history[-1]['seconds'] / 60:.0f} min",
                f"{test['parameters']:,}",
                f"{history[-1]['peak_bytes'] / 1e9:.2f} GB",
                f"{test['device']}, {test['precision']}",
            ]
        rows.append(row)
    header = ["run", "fold", "seed", "1-shot mIoU [95 %]", "episodes seen", "training"]
    return markdown([*header, "learned values", "peak memory", "computed by"], rows)


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

    @torch.no_grad()
    def predict(batch):
        batch = batch.to(device)
        with computing_in(dtype, device):
            logits = model.logits_from_features(
                *features_of(model, batch), batch.support_mask, batch.query_mask.shape[-2:]
            )
            masks = torch.stack([one[:, 1] > one[:, 0] for one in logits], dim=1)
        return {f"{k} {rule}": vote(masks[:, :k], rule).cpu() for k in SHOTS for rule in RULES}

    scores = _scores(predict, config, benchmark, max(SHOTS))
    rows = [_row(scores[f"{k} {rule}"], shot=k, rule=rule) for k in SHOTS for rule in RULES]
    return {"digest": benchmark.digest(), "scores": rows}


def measure_backgrounds(model: HSNet, config: Config, benchmark: DrawnBenchmark) -> dict:
    """The first test episodes as they are, and on backgrounds of another kind: the network and the prototypes."""
    device = choose_device(config.device)
    prototypes = fit_prototypes(model, config, benchmark, device)
    predict = predictor(model, device, choose_precision(config.precision, device), prototypes)
    rows = []
    for name, drawn in zip(BACKGROUNDS, (benchmark, on_other_backgrounds(benchmark)), strict=True):
        scores = _scores(predict, config, drawn, shot=1)
        rows += [_row(score, backgrounds=name, who=who) for who, score in scores.items()]
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


def _scores(predict, config, benchmark, shot):
    episodes = test_episodes(benchmark, fold=config.fold, shot=shot, count=EPISODES)
    return evaluate_run(predict, config, benchmark, episodes, "measuring")


def _row(score, **which):
    return {**which, **score.summary(), "areas": score.rows}


def main() -> None:
    """The program."""
    for run in (_run(PUBLISHED, fold) for fold in CLAIMS_FOLDS):
        if not (run.folder / "config.json").exists():
            continue
        config = Config.load(run.folder / "config.json")
        for name in (name for name in MEASUREMENTS if not (run.folder / name).exists()):
            model = HSNet.from_run(run.folder).to(choose_device(config.device))
            write_json(run.folder / name, MEASUREMENTS[name](model, config, Emoji(config.size)))
            print(f"written to {run.folder / name}")
    print(f"{progress()}\n\n{runs_table()}\n\n{verdicts_table()}")


if __name__ == "__main__":
    run_program(main)
