"""Test a trained run, beside baselines on the same episodes.

python -m hsnet.evaluate                      a table of all runs
python -m hsnet.evaluate RUN --shot 5         tests a run; writes test-5shot.json into its folder
python -m hsnet.evaluate RUN --benchmark folder --root DIR   tests it on your own images
python -m hsnet.evaluate RUN --benchmark coco-to-pascal      tests a run of COCO on PASCAL, on classes that it was not trained on
python -m hsnet.evaluate --reference-checkpoint FILE --benchmark pascal --backbone resnet50 --fold 0
                                              tests the authors' released weights
make evaluate                                 tests the run of `make train`, 1- and 5-shot
"""

from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from . import runs
from .benchmarks import BENCHMARKS, Benchmark
from .config import OF_PAPER, Config, add_settings, command_line, paper, run_program
from .devices import choose_device
from .engine import fit_prototypes, test_run
from .model import HSNet
from .paths import data_folder
from .reference import load_reference
from .runs import run_folder, test_path

# Settings in which a test may differ from the run's own.
ASKED = ("benchmark", "fold", "root", "test_root", "protocol", "rule", "size", "test_episodes", "precision", "device")


def main() -> None:
    """The program."""
    parser = command_line("evaluate", __doc__)
    option = parser.add_argument
    option("run", nargs="?", help="name of a run under data/runs, or its folder (without it: a table of all runs)")
    option("--shot", type=int, default=1, help="supports per episode (default: 1)")
    option("--original-size", action="store_true", help="score at the images' own sizes, not at the network's")
    option("--reference-checkpoint", type=Path, metavar="FILE", help="test the authors' weights in FILE, not a run")
    add_settings(parser, (*ASKED, "backbone"), "the run's")
    arguments = parser.parse_args()
    if arguments.shot < 1:
        raise ValueError(f"--shot is {arguments.shot}: an episode needs at least one support")
    if arguments.reference_checkpoint is not None:
        results, folder = _score_reference(arguments)
    elif arguments.run is None:
        print(runs.runs_table())
        return
    else:
        results, folder = _score_run(arguments)
    print("\n\n".join(runs.scores_table([result]) for result in results))
    print(f"written to {folder}")


def _score_run(arguments):
    """The results of a run, and its folder."""
    if arguments.backbone is not None:
        raise ValueError("--backbone is only for --reference-checkpoint: a run stores its backbone")
    folder = run_folder(arguments.run)
    own = Config.load(folder / "config.json")
    config = _asked(own, arguments)
    benchmark = config.load_benchmark()
    _check_unseen(own, config, benchmark)
    model = HSNet.from_run(folder)
    sizes = [False, True] if benchmark.protocol == "strict" else [arguments.original_size]
    prototypes = fit_prototypes(model, config, benchmark, choose_device(config.device))
    results = [
        test_run(model, config, benchmark, folder, arguments.shot, prototypes, original_size=size) for size in sizes
    ]
    return results, ", ".join(str(test_path(folder, config, arguments.shot, size)) for size in sizes)


def _score_reference(arguments):
    """The results of a checkpoint of the authors, and its folder: `reference/NAME` in the data folder."""
    if arguments.run is not None:
        raise ValueError("give a run or --reference-checkpoint, not both")
    if arguments.benchmark not in OF_PAPER:
        raise ValueError(
            f"--benchmark is {arguments.benchmark!r}: give the benchmark of the checkpoint's training, {', '.join(OF_PAPER)}"
        )
    config = _asked(paper(arguments.benchmark, arguments.backbone or "resnet50", arguments.fold or 0), arguments)
    model = HSNet(config.backbone, pretrained=False)
    model.training_size = config.size
    checkpoint = load_reference(model, arguments.reference_checkpoint)
    benchmark = config.load_benchmark()
    folder = data_folder() / "reference" / config.run
    folder.mkdir(parents=True, exist_ok=True)
    config.save(folder / "config.json")
    result = test_run(
        model, config, benchmark, folder, arguments.shot, original_size=arguments.original_size, checkpoint=checkpoint
    )
    return [result], test_path(folder, config, arguments.shot, arguments.original_size)


def _asked(config, arguments):
    """A configuration with what the command line asks for."""
    given = {name: value for name in ASKED if (value := getattr(arguments, name)) is not None}
    if given.get("benchmark", config.benchmark) != config.benchmark:
        given = {"root": "", "test_root": "", "least_area": 0} | given  # the run's are of another benchmark
    return replace(config, **given)


def _check_unseen(own: Config, config: Config, benchmark: Benchmark) -> None:
    """A run may not be tested on classes it was trained on, but for its own test."""
    if (own.benchmark, own.fold, own.test_root) == (config.benchmark, config.fold, config.test_root):
        return
    trained = BENCHMARKS[own.benchmark]()
    if trained.vocabulary == benchmark.vocabulary and trained.options:  # its classes are those of its files
        if not own.load_benchmark().root.is_dir():
            tqdm.write(
                f"the images of {own.name or own.run} are missing here: whether it was trained on these classes was not checked"
            )
            return
        trained = own.load_benchmark()
    if seen := benchmark.seen(config.fold, trained, own.fold):
        raise ValueError(
            f"--benchmark {config.benchmark} --fold {config.fold}: this run was trained on {len(seen)} of its classes, such as "
            f"{seen[0]}. Test it with --fold {own.fold}"
        )


if __name__ == "__main__":
    run_program(main)
