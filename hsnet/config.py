"""Every setting of a run, with its default and its help text: the command lines and `config.json` come from here."""

import argparse
import dataclasses
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from .backbone import BACKBONES, LAYERS
from .benchmarks import BENCHMARKS, REMOVED, Benchmark, load_benchmark
from .benchmarks.augment import AUGMENTATIONS
from .conv4d import KERNELS

# Benchmarks that the paper trains on: their command line starts from its settings.
OF_PAPER = tuple(name for name, benchmark in BENCHMARKS.items() if benchmark.paper_settings is not None)
TEST_LISTS = {"official": 1, "strict": 5}  # by protocol: how many lists of test episodes, seeded 0, 1, …
TRAINING_SEEDS = {"official": 1, "strict": 3}  # by protocol: how many trainings, seeded 0, 1, …
KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "text"}
RANGES = {  # least and most; the most are far beyond use, so that a slip of the finger is an error at once
    "size": (32, 8192),
    "epochs": (1, 10**6),
    "batch": (1, 10**5),
    "micro_batch": (0, 10**5),
    "val_episodes": (1, 10**7),
    "test_episodes": (1, 10**7),
    "epoch_episodes": (0, 10**9),
    "patience": (0, 10**6),
    "minutes": (0, 10**7),
    "workers": (-1, 1024),
    "least_area": (0, 10**9),
    "seed": (0, 2**63 - 1),
    "learning_rate": (1e-9, 1000),
    "foreground_weight": (1e-9, 1000),
}

MODEL = ("backbone", "pretrained", "kernel", "mask_support", "layers", "levels", "convolutions", "train_backbone")
# Settings that may differ between the sittings of a run: they change where and how it is computed, not what.
FREE = ("workers", "device", "name", "root", "test_root", "micro_batch", "recompute", "compile")
RETIRED = ("bad_files", "tensorboard")  # of earlier versions; files may hold them


def _setting(default, help: str, choices: tuple | None = None):
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass
class Config:
    """The settings of one training run. The defaults are those of the embedded benchmark on a laptop; `paper` has the
    paper's, which are the defaults of a command line for the paper's benchmarks.

    Raises:
        ValueError: a setting out of its range or choices, naming it, the value and what is possible.
    """

    benchmark: str = _setting(
        "emoji",
        "; ".join(["data of training and test", *(f"{n} {b.summary}" for n, b in BENCHMARKS.items() if b.summary)]),
        tuple(BENCHMARKS),
    )
    root: str = _setting("", "folder of the benchmark's files (empty: its name under HSNET_IMAGES, else under data/)")
    test_root: str = _setting(
        "", "folder: a second folder with the test classes; training then uses all classes of --root"
    )
    least_area: int = _setting(0, "folder, COCO's format: exclude a class from images where it covers fewer pixels")
    protocol: str = _setting(
        "official",
        "official: the paper's episodes, on PASCAL and COCO for validation and test; strict: validation on classes held "
        "out of training, distinct supports, five lists of test episodes",
        tuple(TEST_LISTS),
    )
    novel_images: str = _setting(
        "keep",
        "training images that also show a held-out class: keep them, as in the paper, or drop them",
        ("keep", "drop"),
    )
    fold: int = _setting(0, "the group of classes that is held out of training", (0, 1, 2, 3))
    backbone: str = _setting(
        "efficientnet_lite0",
        f"frozen network whose features are compared: {', '.join(BACKBONES)}, or timm:NAME for a network of timm with stages at "
        "strides 8, 16 and 32",
    )
    pretrained: bool = _setting(True, "start from the backbone's ImageNet weights")
    start: str = _setting(
        "", "run with the initial weights (empty: random weights); give another --seed than that run's"
    )
    kernel: str = _setting("center-pivot", "kernel of the 4D convolutions", tuple(KERNELS))
    layers: str = _setting("all", "layers of each level: all, the last (deep) or the first (shallow)", tuple(LAYERS))
    levels: int = _setting(3, "number of levels of the pyramid, from the coarsest on", (3, 2, 1))
    convolutions: int = _setting(3, "number of 4D convolutions in each squeezing and mixing block", (3, 2, 1))
    mask_support: bool = _setting(True, "mask the support features, equation (1) of the paper")
    train_backbone: bool = _setting(False, "train the backbone as well (an ablation of the paper, which over-fits)")
    size: int = _setting(256, "side of the resized images, in pixels")
    augment: str = _setting("", f"augmentation of training images, comma-separated: {', '.join(AUGMENTATIONS)}")
    shot: str = _setting(
        "1,5", "supports per test episode, comma-separated, one test for each; training is 1-shot, as in the paper"
    )
    epochs: int = _setting(12, "largest number of epochs")
    epoch_episodes: int = _setting(400, "training episodes per epoch (0: one for each training query)")
    batch: int = _setting(4, "episodes per training step, summed over all processes")
    micro_batch: int = _setting(
        0, "episodes of a batch computed at a time; the same step in less memory (0: automatic)"
    )
    recompute: bool = _setting(
        False, "activation checkpointing of the squeezing blocks; the same step in less memory and more time"
    )
    compile: bool = _setting(
        False, "compile the network with torch.compile, which takes some minutes; for long training runs on a GPU"
    )
    optimizer: str = _setting("muon", "adam, as in the paper, or muon, which learns faster", ("adam", "muon"))
    learning_rate: float = _setting(0.015, "learning rate: about 0.001 for adam, 0.015 for muon")
    foreground_weight: float = _setting(2.0, "weight of foreground pixels in the loss (the paper: 1)")
    boundary: str = _setting(
        "background",
        "pixels labelled 255 by PASCAL in the loss: background, as in the paper, or ignore, as in the scores",
        ("background", "ignore"),
    )
    schedule: str = _setting(
        "cosine",
        "learning rate: constant, as in the paper, or cosine, with warm-up and decay to zero",
        ("constant", "cosine"),
    )
    patience: int = _setting(0, "stop after this many epochs without a better validation mIoU (0: never)")
    minutes: float = _setting(15.0, "stop after this many minutes; the schedule then follows the clock (0: no limit)")
    precision: str = _setting(
        "auto",
        "auto: bfloat16 where the hardware computes in it, float16 with a scaled loss on other GPUs, else float32",
        ("auto", "float32", "bfloat16", "float16"),
    )
    val_episodes: int = _setting(92, "validation episodes, which choose the best epoch")
    test_episodes: int = _setting(
        1000, "test episodes; the test after training uses fewer for several supports, hsnet.evaluate all of them"
    )
    rule: str = _setting(
        "paper",
        "combination of several supports: paper and majority vote (see hsnet.vote); mean thresholds the mean probability, "
        "with a threshold chosen on the validation episodes",
        ("paper", "majority", "mean"),
    )
    workers: int = _setting(-1, "processes that load episodes (-1: automatic)")
    device: str = _setting("auto", "auto, cpu, cuda, cuda:1, mps, …")
    seed: int = _setting(0, "seed of the initial weights and the training episodes")
    name: str = _setting("", "name of the run's folder under data/runs (empty: benchmark-foldF-backbone)")

    def __post_init__(self):
        for option in dataclasses.fields(self):
            value, choices = getattr(self, option.name), option.metadata["choices"]
            if option.type is float and type(value) is int:
                value = float(value)
                setattr(self, option.name, value)
            if type(value) is not option.type:
                raise ValueError(f"{option.name} is {value!r}: it must be {KINDS[option.type]}")
            if choices and value not in choices:
                possible = f"choose one of {', '.join(map(str, choices))}"
                raise ValueError(f"{option.name} is {value!r}: {REMOVED.get(value, possible)}")
        for name, (least, most) in RANGES.items():
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be {least} or more, at most {most}")
        if self.backbone not in BACKBONES and not self.backbone.startswith("timm:"):
            raise ValueError(f"backbone is {self.backbone!r}: choose one of {', '.join(BACKBONES)}, or timm:NAME")
        if self.name != Path(self.name).name or self.name == ".." or len(self.name.encode()) > 200:
            raise ValueError(
                f"name is {self.name!r}: it must be a folder's name, without a path, of at most 200 letters"
            )
        self.shots, self.augmentations  # noqa: B018 - raise where a list is wrong

    @property
    def shots(self) -> list[int]:
        """The numbers of supports in the tests."""
        try:
            shots = [int(part) for part in self.shot.split(",")]
        except ValueError:
            shots = [0]
        if min(shots) < 1 or max(shots) > 100:
            raise ValueError(f"shot is {self.shot!r}: give numbers of supports, 1 to 100, with commas between: 1,5")
        return shots

    @property
    def augmentations(self) -> tuple[str, ...]:
        """The augmentation of training images, see `hsnet.benchmarks.augment`."""
        kinds = tuple(self.augment.split(",")) if self.augment else ()
        if unknown := [kind for kind in kinds if kind not in AUGMENTATIONS]:
            raise ValueError(f"augment is {self.augment!r}: {unknown[0]!r} is none of {', '.join(AUGMENTATIONS)}")
        return kinds

    @property
    def run(self) -> str:
        """The name of the run's folder."""
        strict = "" if self.protocol == "official" else f"-{self.protocol}"
        return self.name or f"{self.benchmark}-fold{self.fold}-{self.backbone.replace(':', '-')}{strict}"

    def load_benchmark(self) -> Benchmark:
        """The benchmark of these settings. Raises as `hsnet.benchmarks.load_benchmark` does."""
        names = ("size", "root", "protocol", "novel_images", "test_root", "least_area")
        return load_benchmark(self.benchmark, **{name: getattr(self, name) for name in names})

    @property
    def model_settings(self) -> dict:
        """The keyword arguments of `HSNet`."""
        return {name: getattr(self, name) for name in MODEL}

    def save(self, path: Path) -> None:
        """Write a `config.json`."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> "Config":
        """Read a `config.json`. Settings that an older version did not have take their defaults.

        Raises:
            ValueError: no such file's content, or a setting that is unknown or wrong, naming it.
        """
        try:
            content = json.loads(path.read_text())
        except ValueError as error:  # no JSON, or no text
            raise ValueError(f"{path} is not JSON ({error}): correct it, or start a new run") from error
        if not isinstance(content, dict):
            raise ValueError(
                f"{path} holds {type(content).__name__}, not settings by name: correct it, or start a new run"
            )
        content = {name: value for name, value in content.items() if name not in RETIRED}
        unknown = sorted(set(content) - {option.name for option in dataclasses.fields(cls)})
        if unknown:
            raise ValueError(
                f"{path} contains unknown settings: {', '.join(map(repr, unknown))}. A newer version may have written it"
            )
        try:
            return cls(**content)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def paper(benchmark: str, backbone: str = "resnet50", fold: int = 0) -> Config:
    """The settings of one training run in the paper's tables.

    The paper's: Adam, 1e-3, no schedule, 400 px, batch 20, float32, 1-shot validation after each epoch, 1000 test episodes,
    and the benchmark's `paper_settings`. Ours: a stop 100 epochs after the best, where the authors
    stopped by eye.

    Raises:
        ValueError: a benchmark or backbone that is not known here.
    """
    settings = {
        "size": 400,
        "batch": 20,
        "optimizer": "adam",
        "learning_rate": 1e-3,
        "schedule": "constant",
        "foreground_weight": 1.0,
        "epochs": 2000,
        "patience": 100,
        "epoch_episodes": 0,
        "minutes": 0.0,
        "precision": "float32",
        "val_episodes": 1000,
        "test_episodes": 1000,
    }
    if benchmark in BENCHMARKS:
        settings |= BENCHMARKS[benchmark].paper_settings or {}
    return Config(benchmark=benchmark, backbone=backbone, fold=fold, **settings)


def command_line(module: str, description: str) -> argparse.ArgumentParser:
    """The parser of `python -m hsnet.MODULE`, whose help begins with the module's docstring."""
    form = argparse.RawDescriptionHelpFormatter
    return argparse.ArgumentParser(f"python -m hsnet.{module}", description=description, formatter_class=form)


def add_settings(parser: argparse.ArgumentParser, names: tuple[str, ...] = (), default: str = "") -> None:
    """Add an option for each setting to a command line; or for some `names`, whose help tells their `default`."""
    for option in (option for option in dataclasses.fields(Config) if not names or option.name in names):
        flag = "--" + option.name.replace("_", "-")
        help_text = f"{option.metadata['help']} (default: {default or _defaults(option)})".replace("%", "%%")
        if option.type is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=None, help=help_text)
        else:
            # Choices are checked by Config, whose message names them; the metavar shows them in --help.
            metavar = "{" + ",".join(map(str, option.metadata["choices"])) + "}" if option.metadata["choices"] else None
            parser.add_argument(flag, type=option.type, default=None, metavar=metavar, help=help_text)


def _defaults(option):
    """A setting's default, and the values of the paper's benchmarks and of `folder` where they differ."""
    if option.name == "benchmark":
        return repr(option.default)
    values = {name: getattr(paper(name), option.name) for name in OF_PAPER}
    usual = max(values.values(), key=list(values.values()).count)
    if option.name in (own := BENCHMARKS["folder"].training_settings):
        values["folder"] = own[option.name]
    text = repr(option.default) + (f", for the paper's benchmarks {usual!r}" if usual != option.default else "")
    return text + "".join(f", {name} {value!r}" for name, value in values.items() if value != usual)


def config_from(arguments: argparse.Namespace) -> Config:
    """The Config of parsed arguments: what was given, over the defaults, or over the paper's settings for its benchmarks."""
    names = [option.name for option in dataclasses.fields(Config)]
    given = {name: value for name in names if (value := getattr(arguments, name, None)) is not None}
    benchmark = given.get("benchmark", Config.benchmark)
    if benchmark in OF_PAPER:
        base = paper(benchmark)
    else:
        settings = BENCHMARKS[benchmark].training_settings if benchmark in BENCHMARKS else {}
        if any(name in given for name in MODEL):  # another network than that of the run it would start from
            settings = {name: value for name, value in settings.items() if name != "start"}
        base = Config(**settings)
    return dataclasses.replace(base, **given)


def run_program(main) -> None:
    """Call a program's `main`; expected errors end it with one line instead of a traceback.

    A user can correct wrong values, missing files, folders that cannot be written, missing packages and too little
    memory; any other error is ours and keeps its traceback. Ctrl-C ends with status 130.
    """
    try:
        main()
    except (ValueError, OSError, ImportError, MemoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        raise SystemExit(130) from None
