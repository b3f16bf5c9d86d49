"""The experiments behind the paper's tables: the training and the tests of each, and how far they are.

A table is a list of experiments. Another table is another line of `TABLES`.
"""

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from ..backbone import backbone_row
from ..benchmarks import BENCHMARKS
from ..config import FREE, TRAINING_SEEDS, Config, paper
from ..paths import SHIPPED, data_folder
from ..runs import lock_holder, read_history

PUBLISHED = ""  # the variant that is the published network
# The paper's ablations: as `results.csv` names them -> the settings that differ.
ABLATIONS: dict[str, dict] = {
    PUBLISHED: {},
    "no support masking": {"mask_support": False},
    "one deep layer per level": {"layers": "deep"},
    "one shallow layer per level": {"layers": "shallow"},
    "two deepest levels": {"levels": 2},
    "deepest level alone": {"levels": 1},
    "two 4D convolutions per block": {"convolutions": 2},
    "one 4D convolution per block": {"convolutions": 1},
    "separable 4D kernels": {"kernel": "separable"},
    "original 4D kernels": {"kernel": "dense"},
    "backbone trained too": {"train_backbone": True},
}
LAST_EPOCH = "last-epoch"  # folder in a run's: the weights of its last epoch, and their tests


def read_paper(name: str) -> list[dict[str, str]]:
    """What the paper reports: the rows of `data/paper/NAME.csv`, such as "results", "kernels" or "training"."""
    with (SHIPPED / "paper" / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


@dataclass(frozen=True)
class Experiment:
    """One training, and the tests a table shows of it.

    Attributes:
        config: of the training; experiments of several tables may share one.
        shots: of the tests.
        tested_on: the benchmark of the tests, where it is not the training's.
        variant: what is changed of the published network, as in `results.csv`; empty for nothing.
        last: whether the last epoch's weights are tested beside the best's.
    """

    config: Config
    shots: tuple[int, ...] = (1, 5)
    tested_on: str = ""
    variant: str = ""
    last: bool = True

    @property
    def benchmark(self) -> str:
        """The benchmark of the tests, as tables call it."""
        return BENCHMARKS[self.tested_on or self.config.benchmark].title

    @property
    def row(self) -> str:
        """The experiment's row in its table; experiments of a row differ by fold."""
        parts = [self.benchmark, backbone_row(self.config.backbone).title, self.variant]
        if self.config.protocol != "official" or self.config.seed:
            parts.append(f"seed {self.config.seed}")
        return ", ".join(part for part in parts if part)

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return data_folder() / "runs" / self.config.run

    @property
    def kinds(self) -> list[tuple[bool, bool]]:
        """The kinds of tests the experiment needs, as `tests` takes them: the strict protocol has the original size, too."""
        sizes = (False, True) if self.config.protocol == "strict" else (False,)
        epochs = (False, True) if self.last else (False,)
        return [(last, original_size) for original_size in sizes for last in epochs]

    def tests(self, last: bool = False, original_size: bool = False) -> dict[int, dict]:
        """What the run's files say of the experiment's tests, by shot; only those of all episodes.

        Args:
            last: of the last epoch's weights instead of the best's.
            original_size: scored at the images' own sizes.
        """
        folder = self.folder / LAST_EPOCH if last else self.folder
        before = f"{self.tested_on}-fold{self.config.fold}-" if self.tested_on else ""
        before += "original-" if original_size else ""
        found = {}
        for shot in self.shots:
            path = folder / f"{before}test-{shot}shot.json"
            if path.exists():
                test = json.loads(path.read_text())
                if test["scores"]["HSNet"]["episodes"] >= self.config.test_episodes:
                    found[shot] = test
        return found


@dataclass(frozen=True)
class State:
    """How far an experiment is.

    Attributes:
        kind: "done", "running", "cut" (begun, and nobody at work), "missing", or "other settings".
        epochs: how many are trained.
        text: what else there is to say.
    """

    kind: str
    epochs: int = 0
    text: str = ""

    def __str__(self) -> str:
        epochs = f" {self.epochs}" if self.kind in ("running", "cut") else ""
        return self.kind + epochs


def state(experiment: Experiment) -> State:
    """How far an experiment is, from the files of its run."""
    folder = experiment.folder
    if not (folder / "config.json").exists():
        return State("missing")
    found, expected = vars(Config.load(folder / "config.json")), vars(experiment.config)
    other = [f"{n} {v!r}, not {expected[n]!r}" for n, v in found.items() if n not in FREE and v != expected[n]]
    if other:
        return State("other settings", text="; ".join(other))
    epochs = len(read_history(folder))
    if holder := lock_holder(folder):
        return State("running", epochs, holder)
    tested = all(set(experiment.tests(*kind)) == set(experiment.shots) for kind in experiment.kinds)
    return State("done" if tested else "cut", epochs)


def expected_hours(config: Config) -> float:
    """GPU hours that a training is expected to take: what it took the authors until it converged; or its own limit.

    They did not say for which backbone, nor for ablations: taken to be the same. Of a benchmark that they did not use:
    hours of two cores that compute in bfloat16.
    """
    if config.minutes:
        return config.minutes / 60
    facts = {row["benchmark"]: row for row in read_paper("training")}
    if row := facts.get(BENCHMARKS[config.benchmark].title):
        return 24 * float(row["days"]) * float(row["gpus"])
    more = CLAIMS_COST.get(config.kernel, 1.0) * (CLAIMS_COST["backbone"] if config.train_backbone else 1)
    return config.epochs * config.epoch_episodes * CLAIMS_SECONDS * more / 3600


def _experiments(benchmark: str, backbones: tuple[str, ...], protocol: str, variant="", **options) -> list[Experiment]:
    """By backbone, training seed and fold."""
    found = []
    for backbone, seed in product(backbones, range(TRAINING_SEEDS[protocol])):
        for fold in range(BENCHMARKS[benchmark].folds):
            config = replace(paper(benchmark, backbone, fold), protocol=protocol, seed=seed, **ABLATIONS[variant])
            marks = [variant.replace(" ", "-")] * bool(variant) + [f"seed{seed}"] * bool(seed)
            config = replace(config, name="-".join([config.run, *marks]) if marks else "")
            found.append(Experiment(config, variant=variant, **options))
    return found


# 6400 episodes, with warm-up and decay to zero: about twenty minutes of two cores that compute in bfloat16, two and a half
# times as many where they do not. At 288 px the squeezed support has 2 × 2 positions, and every weight learns.
CLAIMS = Config(size=288, minutes=0.0, epochs=8, epoch_episodes=800, shot="1")
CLAIMS_FOLDS = (0, 1)
CLAIMS_SECONDS = 0.15  # a training episode of these, on two cores that compute in bfloat16; to plan with
CLAIMS_COST = {"dense": 3.4, "backbone": 1.8}  # times as much


def claims() -> list[Experiment]:
    """What the paper claims, on the embedded benchmark; compared by `kit.claims`."""
    # In the order of training. Dense kernels, which cost four times as much, are the last.
    places = {PUBLISHED: 0, "separable 4D kernels": 1, "original 4D kernels": 3}
    variants = sorted(ABLATIONS, key=lambda variant: places.get(variant, 2))
    found = []
    for variant, seed in ((PUBLISHED, 0), (PUBLISHED, 1), *((variant, 0) for variant in variants[1:])):
        for fold in CLAIMS_FOLDS:
            mark = (variant.replace(" ", "-") or "published") + f"-seed{seed}" * bool(seed)
            config = replace(CLAIMS, fold=fold, seed=seed, name=f"claims-fold{fold}-{mark}", **ABLATIONS[variant])
            found.append(Experiment(config, shots=(1,), variant=variant, last=False))
    return found


VGG_AND_RESNETS, RESNETS = ("vgg16", "resnet50", "resnet101"), ("resnet50", "resnet101")
TABLES: dict[str, Callable[[str], list[Experiment]]] = {  # by name: the experiments under a protocol
    "pascal": lambda protocol: _experiments("pascal", VGG_AND_RESNETS, protocol),
    "coco": lambda protocol: _experiments("coco", RESNETS, protocol),
    "fss": lambda protocol: _experiments("fss", VGG_AND_RESNETS, protocol),
    # Trained on COCO-20i, tested on PASCAL's images: no class of a fold was trained on.
    "coco-to-pascal": lambda protocol: _experiments("coco", RESNETS, protocol, tested_on="coco-to-pascal"),
    "ten-shot": lambda protocol: [
        one for name in ("pascal", "coco") for one in _experiments(name, ("resnet50",), protocol, shots=(10,))
    ],
    "ablations": lambda protocol: [
        one for variant in ABLATIONS for one in _experiments("pascal", ("resnet101",), protocol, variant)
    ],
    "claims": lambda protocol: claims(),
}
OF_PAPER = tuple(name for name in TABLES if name != "claims")


def experiments_of(table: str, protocol: str = "official") -> list[Experiment]:
    """The experiments of a table.

    Raises:
        ValueError: a table that does not exist.
    """
    if table not in TABLES:
        raise ValueError(f"no table {table!r}: choose one of {', '.join(TABLES)}")
    return TABLES[table](protocol)


def by_row(experiments: list[Experiment]) -> dict[str, list[Experiment]]:
    """The experiments of each row of a table: its folds."""
    rows: dict[str, list[Experiment]] = {}
    for one in experiments:
        rows.setdefault(one.row, []).append(one)
    return rows


def trainings(experiments: list[Experiment]) -> list[Config]:
    """The trainings behind experiments, each once."""
    return list({one.config.run: one.config for one in experiments}.values())


def only(tables: dict[str, list[Experiment]], words: str) -> dict[str, list[Experiment]]:
    """The experiments of some backbones or folds, by table; tables without any are left out.

    Args:
        words: with commas between, such as "resnet50,0" or "resnet50,resnet101,0,1"; empty for all.

    Raises:
        ValueError: a word that is neither, with what is possible.
    """
    configs = [one.config for experiments in tables.values() for one in experiments]
    asked = {word.strip() for word in words.split(",") if word.strip()}
    backbones, folds = {config.backbone for config in configs}, {str(config.fold) for config in configs}
    if unknown := sorted(asked - backbones - folds):
        raise ValueError(f"--only {words}: no {unknown[0]!r} here; choose of {', '.join(sorted(backbones | folds))}")
    backbones, folds = backbones & asked or backbones, folds & asked or folds
    chosen = {
        name: [one for one in experiments if one.config.backbone in backbones and str(one.config.fold) in folds]
        for name, experiments in tables.items()
    }
    return {name: experiments for name, experiments in chosen.items() if experiments}
