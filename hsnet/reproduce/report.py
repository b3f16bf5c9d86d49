"""Tables made from files: the paper's numbers beside ours, and the tables of the pages.

python -m hsnet.reproduce.report      render the tables of the README and the pages again
"""

import csv
import json
import re
from collections.abc import Callable, Iterable

from ..backbone import backbone_row
from ..config import command_line, run_program
from ..paths import ROOT, data_folder
from ..runs import markdown, read_history, read_tests, scores_table
from ..speed.report import read_speed, step_memory_table
from .experiments import (
    OF_PAPER,
    Experiment,
    by_row,
    expected_hours,
    experiments_of,
    only,
    read_paper,
    state,
    trainings,
)

# The files that contain rendered tables.
PAGES = tuple(ROOT / name for name in ("README.md", "data/runs/README.md", "book/benchmarks.md", "book/networks.md"))


def paper_table() -> str:
    """Markdown: the paper's mean mIoU, 1- and 5-shot, by benchmark and backbone; in brackets how many sources agree."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in read_paper("results"):
        if row["what"] == "mean" and not row["variant"] and row["sources"] != "unconfirmed":
            by_shot = found.setdefault((row["benchmark"], row["backbone"]), {})
            by_shot[row["shot"]] = f"{row['value']} [{row['sources']}]"
    rows = [[*key, *(by_shot.get(shot) for shot in ("1", "5"))] for key, by_shot in found.items()]
    return markdown(["benchmark", "backbone", "1-shot mIoU", "5-shot mIoU"], rows)


def paper_kernels_table() -> str:
    """Markdown: what the paper reports of the cost of its kernels."""
    header = ["kernel", "time", "memory", "FLOPs", "parameters"]
    forms = ("{kernel}", "{milliseconds} ms", "{gigabytes} GB", "{gflops} G", "{million_parameters} M")
    return markdown(header, [[form.format(**row) for form in forms] for row in read_paper("kernels")])


def experiments_table(names: Iterable[str] = OF_PAPER, protocol: str = "official", words: str = "") -> str:
    """Markdown: every experiment of tables with its state, and the hours of the trainings that are not done yet.

    A training that several experiments share is counted where it comes first.

    Args:
        words: as in `experiments.only`.
    """
    tables = only({name: experiments_of(name, protocol) for name in names}, words)
    folds = sorted({one.config.fold for experiments in tables.values() for one in experiments})
    counted: set[str] = set()
    rows, total = [], 0.0
    for name, experiments in tables.items():
        for row, group in by_row(experiments).items():
            states = {one.config.fold: state(one) for one in group}
            new = [config for config in trainings(group) if config.run not in counted]
            counted |= {config.run for config in new}
            hours = sum(expected_hours(config) for config in new if states[config.fold].kind != "done")
            total += hours
            rows.append([name, row, *(str(states.get(f, "")) for f in folds), f"{hours:,.0f}" if new else "above"])
    rows.append(["all", *[""] * (1 + len(folds)), f"{total:,.0f}"])
    hours = "hours" if "claims" in tables else "GPU hours"
    return markdown(["table", "row", *(f"fold {f}" for f in folds), hours], rows)


def expectation(names: Iterable[str] = OF_PAPER) -> str:
    """Where the hours of `experiments_table` come from, and what the runs take on a disk."""
    disk = "On a disk a run takes about 0.1 GB, with dense kernels 0.5 GB, with a backbone that is trained too 1.8 GB"
    if "claims" in names:
        return f"Hours of two cores that compute in bfloat16; no GPU is needed. {disk}."
    took = ", ".join(
        f"{row['benchmark']} {row['days']} days on {row['gpus']} GPUs ({row['gpu']})" for row in read_paper("training")
    )
    return (
        f"GPU hours: what a training took the authors until it converged ({took}), taken to be the same for every backbone "
        f"and ablation; the 100 epochs after the best one are not included, and tests take minutes. {disk}. "
        "A training that several experiments share is counted where it comes first."
    )


def _printed(experiment: Experiment, shot: int) -> dict[str, str]:
    """The paper's numbers in an experiment's row: "fold 0" …, "mean", "FB-IoU"; with "?" where unconfirmed."""
    key = (experiment.benchmark, backbone_row(experiment.config.backbone).title, experiment.variant, str(shot))
    return {
        row["what"]: row["value"] + " ?" * (row["sources"] == "unconfirmed")
        for row in read_paper("results")
        if (row["benchmark"], row["backbone"], row["variant"], row["shot"]) == key
    }


def _measured(group: list[Experiment], shot: int, last: bool = False, original_size: bool = False) -> dict[str, str]:
    """The same of our runs: a mean only over all folds, else how many there are."""
    tests = {one.config.fold: one.tests(last, original_size).get(shot) for one in group}
    scores = {fold: test["scores"]["HSNet"] for fold, test in tests.items() if test}
    found = {f"fold {fold}": f"{score['miou']:.1f}" for fold, score in scores.items()}
    for name, key in (("mean", "miou"), ("FB-IoU", "fb_iou")) if scores else ():
        mean = sum(score[key] for score in scores.values()) / len(scores)
        found[name] = f"{mean:.1f}" if len(scores) == len(group) else f"– ({len(scores)}/{len(group)})"
    return found


def paper_and_ours(name: str, protocol: str = "official") -> str:
    """Markdown: a table of the paper beside our runs, best and last epoch, and under it how ours came about.

    "–" was not reported or not run; a mean is one over all folds, never over some. What was not run and what the paper does
    not print have no line; where others were run, the text under the table names the rows that were not.

    Raises:
        ValueError: an unknown table; runs that must not stand in one table, such as those of two protocols.
    """
    experiments = experiments_of(name, protocol)
    folds = [f"fold {f}" for f in sorted({one.config.fold for one in experiments})]
    columns = [*(folds if len(folds) > 1 else []), "mean", "FB-IoU"]
    rows, left = [], []
    for row, group in by_row(experiments).items():
        for shot in group[0].shots:
            printed = _printed(group[0], shot) if protocol == "official" else {}
            measured = {
                f"ours, {'last' if last else 'best'} epoch" + ", original size" * original_size: found
                for last, original_size in group[0].kinds
                if any(found := _measured(group, shot, last, original_size))
            }
            left += [] if measured else [f"{row}, {shot}-shot"]
            lines = ({"paper": printed} if printed else {}) | measured
            rows += [[row, f"{shot}", what, *(found.get(c) for c in columns)] for what, found in lines.items()]
    some = any(what != "paper" for _, _, what, *_ in rows)
    not_run = f" Not run: {'; '.join(left)}." if some and left else ""
    return f"{markdown(['', 'shot', 'mIoU', *columns], rows)}\n\n{_caption(experiments)}{not_run}"


def summary_table() -> str:
    """Markdown: the means of the paper's main tables beside ours."""
    rows = []
    for name in ("pascal", "coco", "fss", "coco-to-pascal"):
        experiments = experiments_of(name)
        _caption(experiments)  # refuses what must not stand in one table
        for row, group in by_row(experiments).items():
            pairs = [(_printed(group[0], shot), _measured(group, shot)) for shot in group[0].shots]
            rows.append([row, *(numbers.get("mean") for pair in pairs for numbers in pair)])
    return markdown(["mean mIoU over the folds", *(f"{s}-shot, {w}" for s in (1, 5) for w in ("paper", "ours"))], rows)


# What must be equal in the tests of one benchmark that stand in one table, and in the trainings behind them.
COMPARABLE, COMPARABLE_TRAINING = ("protocol", "size", "digest", "rule"), ("novel_images", "boundary")
CHOSEN = (
    "The best epoch is the one with the highest 1-shot validation mIoU. On PASCAL-5i and COCO-20i the paper validates on "
    "the very episodes that it reports, and so do we under the official protocol: such a best epoch is chosen on the test. "
    "FSS-1000 has validation classes of its own. The last epoch is 100 after the best: what it "
    "scores less is what choosing gains."
)


def _caption(experiments: list[Experiment]) -> str:
    """How our numbers came about, of the tests' own files.

    Raises:
        ValueError: tests that cannot be compared, naming what differs.
    """
    kinds: dict[str, set[tuple]] = {}
    for one in experiments:
        for test in (test for kind in one.kinds for test in one.tests(*kind).values()):
            training = test.get("training", {})
            same = {key: test[key] for key in COMPARABLE if key in test} | test.get("source", {})
            same |= {key: training[key] for key in COMPARABLE_TRAINING if key in training}
            kinds.setdefault(one.benchmark, set()).add(tuple(sorted(same.items())))
    for benchmark, found in kinds.items():
        if len(found) > 1:
            raise ValueError(
                f"tests of {benchmark} that must not stand in one table: {' and '.join(map(str, sorted(found)))}. Test the "
                "runs again with `python -m hsnet.reproduce`"
            )
    ours = "; ".join(
        f"{benchmark}: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in kind if key != "digest")
        for benchmark, (kind,) in kinds.items()
    )
    return (
        "`–`: not reported, or not run; `?`: a number of the paper found in no second place; a mean is one over all folds. "
        + (f"{CHOSEN} Ours: {ours}." if ours else "Ours: nothing was run yet.")
    )


def networks_table() -> str:
    """Markdown: the networks of `data/runs/networks.csv` that are there, their trainings and their 1-shot test scores.

    Training episodes are counted in whole epochs, although a limit in minutes ends the last one early.
    """
    columns = "run", "network", "start", "side, px", "training episodes", "minutes", "computed on", "1-shot mIoU [95 %]"
    rows = []
    for network in csv.DictReader((data_folder() / "runs" / "networks.csv").read_text().splitlines()):
        folder = data_folder() / "runs" / network["run"]
        if history := read_history(folder):
            config = json.loads((folder / "config.json").read_text())
            row = network | {
                "run": f"`{network['run']}`",
                "start": f"`{config['start']}`" if config.get("start") else None,
                "side, px": str(config["size"]),
                "training episodes": f"{len(history) * config['epoch_episodes']:,}",
                "minutes": f"{history[-1]['seconds'] / 60:.0f}",
                "1-shot mIoU [95 %]": _scores(folder).get((1, "HSNet")),
            }
            rows.append([row[column] for column in columns])
    return markdown([*columns], rows)


def results_table(runs: str) -> str:
    """Markdown: test scores of runs, with commas between their names, beside those of the prototypes."""
    columns = [(shot, name) for shot in (1, 5) for name in ("HSNet", "prototypes")]
    rows = [[f"`{run}`", *map(_scores(data_folder() / "runs" / run).get, columns)] for run in runs.split(",")]
    return markdown(["run", *(f"{shot}-shot, {name}" for shot, name in columns)], rows)


def _scores(folder):
    """A run's mIoU with its interval, by number of shots and predictor."""
    scores = {(test["shot"], name): score for test in read_tests(folder) for name, score in test["scores"].items()}
    return {key: "{:.1f} [{:.1f}, {:.1f}]".format(score["miou"], *score["interval"]) for key, score in scores.items()}


def render(text: str) -> str:
    """Replace what stands between `<!-- WHAT NAME -->` and `<!-- end -->` by a table made from files.

    WHAT is a key of `BLOCKS`, whose function is given NAME; or "run", the test scores of a run; "controls", those of
    `evaluate --controls`; or the beginning of a file's name, such as "coco-fold0": a run's scores on another benchmark.
    """

    def table(match):
        what, name = match.groups()
        made = BLOCKS[what](name) if what in BLOCKS else _run_table(name, what)
        return f"<!-- {what} {name} -->\n{made}\n<!-- end -->"

    return re.sub(r"<!-- (\S+) (\S+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


BLOCKS: dict[str, Callable[[str], str]] = {
    "step-memory": lambda name: step_memory_table(read_speed(name)),
    "networks": lambda _: networks_table(),
    "scores": results_table,
}


def _run_table(run: str, what: str) -> str:
    folder = data_folder() / "runs" / run
    if what == "controls":
        tests = [json.loads(path.read_text()) for path in folder.glob("controls.json")]
    else:
        tests = read_tests(folder, "" if what == "run" else f"{what}-")
    return scores_table(tests) if tests else "–"


def main() -> None:
    """The program."""
    command_line("reproduce.report", __doc__).parse_args()
    for page in PAGES:
        page.write_text(render(page.read_text()))
        print(f"written to {page}")


if __name__ == "__main__":
    run_program(main)
