"""Test a trained run, beside baselines on the same episodes.

python -m hsnet.evaluate                      a table of all runs
python -m hsnet.evaluate RUN --shot 5         tests a run; writes test-5shot.json into its folder
python -m hsnet.evaluate RUN --benchmark folder --root DIR   tests it on your own images
python -m hsnet.evaluate RUN --benchmark coco-to-pascal      tests a run of COCO on PASCAL, on classes without training
python -m hsnet.evaluate --reference-checkpoint FILE --benchmark pascal --backbone resnet50 --fold 0
                                              tests the authors' released weights
make evaluate                                 tests the run of `make train`, 1- and 5-shot
"""

import argparse
from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from . import runs
from .benchmarks import BENCHMARKS, Benchmark
from .benchmarks.drawn import DrawnBenchmark
from .config import OF_PAPER, Config, paper, run_program
from .devices import choose_device, choose_precision
from .engine import evaluate_run, fit_prototypes, predictor, test_run
from .episodes import test_episodes
from .model import HSNet
from .paths import data_folder
from .reference import load_reference
from .runs import run_folder, test_path


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        prog="python -m hsnet.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "run", nargs="?", help="name of a run under data/runs, or its folder (without it: a table of all runs)"
    )
    parser.add_argument("--shot", type=int, default=1, help="supports per episode (default: 1)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, … (default: auto)")
    for name, kind, text in (
        ("test-episodes", int, "number of episodes"),
        ("benchmark", str, "benchmark of the test, such as coco for photographs"),
        ("fold", int, "fold of the test"),
        ("root", str, "folder of the benchmark's files"),
        ("test-root", str, "folder: a second folder with the test classes"),
        (
            "protocol",
            str,
            "official: the paper's episodes; strict: five lists of episodes with distinct supports, also scored at the "
            "images' own sizes",
        ),
        ("size", int, "side of the resized images, in pixels"),
        ("rule", str, "vote of several supports, paper or majority"),
        ("precision", str, "auto, float32, bfloat16 or float16"),
    ):
        parser.add_argument(f"--{name}", type=kind, help=f"{text} (default: the run's)")
    for name, text in (
        ("original-size", "score at the images' own sizes, not at the network's"),
        ("controls", "test the queries with supports of their other objects (drawn benchmarks)"),
    ):
        parser.add_argument(f"--{name}", action="store_true", help=text)
    reference = "test the authors' weights in FILE; needs --benchmark, and the --backbone and --fold of their training"
    parser.add_argument("--reference-checkpoint", type=Path, metavar="FILE", help=reference)
    parser.add_argument("--backbone", help="backbone of the reference checkpoint (default: resnet50)")
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
        raise ValueError("--backbone is for --reference-checkpoint: a run brings its own")
    folder = run_folder(arguments.run)
    own = Config.load(folder / "config.json")
    config = _asked(own, arguments)
    benchmark = config.load_benchmark()
    _check_unseen(own, config, benchmark)
    model = HSNet.from_run(folder)
    if arguments.controls:
        if not benchmark.drawn:
            drawn = ", ".join(name for name, benchmark in BENCHMARKS.items() if benchmark.drawn)
            raise ValueError(f"--controls needs a benchmark whose scenes are drawn ({drawn}), not {benchmark.name}")
        return [control_run(model, config, benchmark, folder)], folder / "controls.json"
    sizes = [False, True] if benchmark.protocol == "strict" else [arguments.original_size]
    prototypes = fit_prototypes(model, config, benchmark, choose_device(config.device))
    results = [
        test_run(model, config, benchmark, folder, arguments.shot, prototypes, original_size=size) for size in sizes
    ]
    return results, ", ".join(str(test_path(folder, config, arguments.shot, size)) for size in sizes)


def control_run(model: HSNet, config: Config, benchmark: DrawnBenchmark, folder: Path) -> dict:
    """Predict test queries from supports of their other objects, and score the masks against these and against the original ones.

    "another object" is scored against the object that was asked for: it should be as high as the test score. "wrong
    support" scores the same masks against the episode's own target: it must collapse. Writes `controls.json`.
    """
    device = choose_device(config.device)
    predict = predictor(model.to(device).eval(), device, choose_precision(config.precision, device))
    episodes = test_episodes(benchmark, fold=config.fold, shot=1, count=config.test_episodes)
    pairs = [(other, episode) for episode in episodes for other in benchmark.other_questions(episode)]
    masks = []

    def another(batch):
        masks.append(predict(batch)["HSNet"])
        return {"another object": masks[-1]}

    scores = evaluate_run(another, config, benchmark, [other for other, _ in pairs], "controls")
    # Of the episode itself only the query's truth is needed: its query stands in for the supports.
    targets = [replace(episode, supports=(episode.query,)) for _, episode in pairs]
    scores |= evaluate_run(lambda _: {"wrong support": masks.pop(0)}, config, benchmark, targets, "controls")
    result = {
        **{name: getattr(config, name) for name in ("benchmark", "fold", "size")},
        "shot": 1,
        "digest": benchmark.digest(),
        "scores": {name: score.summary() for name, score in scores.items()},
    }
    runs.write_json(folder / "controls.json", result)
    return result


def _score_reference(arguments):
    """The results of a checkpoint of the authors, and its folder: `reference/NAME` in the data folder."""
    if arguments.run is not None or arguments.controls:
        raise ValueError("--reference-checkpoint takes the place of a run and has no --controls: give one of them")
    if arguments.benchmark not in OF_PAPER:
        raise ValueError(
            f"--benchmark is {arguments.benchmark!r}: say what the checkpoint was trained on, {', '.join(OF_PAPER)}"
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
    names = (
        "benchmark",
        "fold",
        "root",
        "test_root",
        "protocol",
        "rule",
        "size",
        "test_episodes",
        "precision",
        "device",
    )
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
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
                f"not checked: whether {own.name or own.run} was trained on these classes, for its images are not here"
            )
            return
        trained = own.load_benchmark()
    if seen := benchmark.seen(config.fold, trained, own.fold):
        same = [b for b in BENCHMARKS.values() if b.vocabulary == trained.vocabulary and not b.options]
        others = [(b(), f) for b in same for f in range(b.folds)]
        unseen = [f"--benchmark {b.name} --fold {f}" for b, f in others if not b.seen(f, trained, own.fold)]
        raise ValueError(
            f"--benchmark {config.benchmark} --fold {config.fold}: this run was trained on {len(seen)} of its classes, such as "
            f"{seen[0]}" + (f". It can be tested with {' or '.join(unseen)}" if unseen else "")
        )


if __name__ == "__main__":
    run_program(main)
