"""The files of a run, and tables made from them.

python -m hsnet.reproduce.report      write the tables of README.md and data/runs/README.md again from the files of the runs
"""

import argparse
import csv
import json
import re
from collections.abc import Callable, Iterable

from ..config import ROOT, data_folder, run_program
from ..runs import _cells, markdown, read_tests, scores_table
from .experiments import (
    BACKBONES,
    OF_PAPER,
    PAPER,
    Experiment,
    expected_bytes,
    expected_hours,
    experiments_of,
    only,
    state,
    trainings,
)

PAGES = (ROOT / "README.md", ROOT / "data" / "runs" / "README.md")  # what holds tables of runs


def paper_results() -> list[dict[str, str]]:
    """What the paper reports: the rows of `data/paper/results.csv`."""
    return list(csv.DictReader((PAPER / "results.csv").open()))


def paper_table() -> str:
    """Markdown: the paper's mean mIoU, 1- and 5-shot, by benchmark and backbone; in brackets how many sources agree."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in paper_results():
        if row["what"] == "mean" and not row["variant"] and row["sources"] != "unconfirmed":
            found.setdefault((row["benchmark"], row["backbone"]), {})[row["shot"]] = (
                f"{row['value']} [{row['sources']}]"
            )
    header = ["benchmark", "backbone", "1-shot mIoU", "5-shot mIoU"]
    return markdown(header, [[*key, by_shot.get("1", "–"), by_shot.get("5", "–")] for key, by_shot in found.items()])


def paper_kernels() -> list[dict[str, str]]:
    """What the paper reports of the cost of its kernels, a row each."""
    return list(csv.DictReader((PAPER / "kernels.csv").open()))


def paper_kernels_table() -> str:
    """Markdown: what the paper reports of the cost of its kernels."""
    header = ["kernel", "time", "memory", "FLOPs", "parameters"]
    forms = ("{kernel}", "{milliseconds} ms", "{gigabytes} GB", "{gflops} G", "{million_parameters} M")
    return markdown(header, [[form.format(**row) for form in forms] for row in paper_kernels()])


def others_table() -> str:
    """Markdown: what later methods report on the same task, 1-shot mIoU; one source each, the method's own paper."""
    rows = list(csv.DictReader((PAPER / "others.csv").open()))
    benchmarks = list(dict.fromkeys(row["benchmark"] for row in rows))
    found = {(r["method"], r["backbone"], r["benchmark"]): r["value"] for r in rows}
    keys = dict.fromkeys((r["method"], r["backbone"]) for r in rows)
    header = ["method", "backbone", *(f"{b}, 1-shot mIoU" for b in benchmarks)]
    return markdown(header, [[*key, *(found.get((*key, b), "–") for b in benchmarks)] for key in keys])


def experiments_table(names: Iterable[str] = OF_PAPER, protocol: str = "official", words: str = "") -> str:
    """Markdown: every experiment of tables with its state, and what the trainings cost that are not done yet.

    A training that several experiments share is counted where it comes first.

    Args:
        words: as in `experiments.only`.
    """
    tables = only({name: experiments_of(name, protocol) for name in names}, words)
    folds = sorted({experiment.config.fold for experiments in tables.values() for experiment in experiments})
    counted: set[str] = set()
    rows, total = [], [0.0, 0]
    for name, experiments in tables.items():
        for row in dict.fromkeys(experiment.row for experiment in experiments):
            states = {experiment.config.fold: state(experiment) for experiment in experiments if experiment.row == row}
            new = [c for c in trainings([c for c in experiments if c.row == row]) if c.run not in counted]
            counted |= {config.run for config in new}
            left = [config for config in new if states[config.fold].kind != "done"]
            cost = [sum(map(expected_hours, left)), sum(map(expected_bytes, left))]
            total = [a + b for a, b in zip(total, cost, strict=True)]
            rows.append(
                [name, row, *(str(states.get(f, "")) for f in folds), *(_cost(*cost) if new else ["above"] * 2)]
            )
    rows.append(["all", "", *("" for _ in folds), *_cost(*total)])
    return markdown(
        ["table", "row", *(f"fold {f}" for f in folds), "hours" if "claims" in tables else "GPU hours", "disk"], rows
    )


def expectation(names: Iterable[str] = OF_PAPER) -> str:
    """Where the hours and the disk of `experiments_table` come from."""
    if "claims" in names:
        return "Hours of two cores that compute in bfloat16; no GPU is needed. Disk: learned values and the states to go on from."
    facts = csv.DictReader((PAPER / "training.csv").open())
    took = ", ".join(f"{row['benchmark']} {row['days']} days on {row['gpus']} GPUs ({row['gpu']})" for row in facts)
    return (
        f"GPU hours: what a training took the authors until it converged ({took}), taken to be the same for every backbone "
        "and ablation; the 100 epochs that a run here goes on after its best come on top, tests take minutes. Disk: learned values and the states to go on from, without the images. A training "
        "that several experiments share is counted where it comes first."
    )


def _cost(hours, size):
    return [f"{hours:,.0f}", f"{size / 1e9:.1f} GB"]


def _printed(experiment: Experiment, shot: int) -> dict[str, str]:
    """What the paper prints of an experiment's row: "fold 0" …, "mean", "FB-IoU" -> the number, with "?" where unconfirmed."""
    key = {
        "benchmark": experiment.benchmark,
        "backbone": BACKBONES[experiment.config.backbone],
        "variant": experiment.variant,
    }
    return {
        row["what"]: row["value"] + " ?" * (row["sources"] == "unconfirmed")
        for row in paper_results()
        if row["shot"] == str(shot) and all(row[k] == v for k, v in key.items())
    }


def _measured(
    experiments: list[Experiment], shot: int, last: bool = False, original_size: bool = False
) -> dict[str, str]:
    """The same of our runs: a mean only over all folds, else how many there are."""
    tests = {experiment.config.fold: experiment.tests(last, original_size).get(shot) for experiment in experiments}
    scores = {fold: test["scores"]["HSNet"] for fold, test in tests.items() if test}
    found = {f"fold {fold}": f"{score['miou']:.1f}" for fold, score in scores.items()}
    for name, key in (("mean", "miou"), ("FB-IoU", "fb_iou")):
        if len(scores) == len(experiments):
            found[name] = f"{sum(score[key] for score in scores.values()) / len(experiments):.1f}"
        elif scores:
            found[name] = f"– ({len(scores)}/{len(experiments)})"
    return found


def paper_and_ours(name: str, protocol: str = "official") -> str:
    """Markdown: a table of the paper beside our runs, best and last epoch, and under it how ours came about.

    "–" was not reported or not run; a mean is one over all folds, never over some. What was not run takes one line, "ours",
    and what the paper does not print none.

    Raises:
        ValueError: an unknown table; runs that must not stand in one table, such as those of two protocols.
    """
    experiments = experiments_of(name, protocol)
    folds = [f"fold {f}" for f in sorted({experiment.config.fold for experiment in experiments})]
    columns = [*(folds if len(folds) > 1 else []), "mean", "FB-IoU"]
    rows = []
    for row in dict.fromkeys(experiment.row for experiment in experiments):
        group = [experiment for experiment in experiments if experiment.row == row]
        for shot in group[0].shots:
            printed = _printed(group[0], shot) if protocol == "official" else {}
            measured = {}
            for last, original_size in group[0].kinds:
                what = f"ours, {'last' if last else 'best'} epoch" + ", original size" * original_size
                measured[what] = _measured(group, shot, last, original_size)
            lines = ({"paper": printed} if printed else {}) | (measured if any(measured.values()) else {"ours": {}})
            rows += [[row, f"{shot}", what, *(found.get(c, "–") for c in columns)] for what, found in lines.items()]
    header = ["", "shot", "mIoU", *columns]
    return f"{markdown(header, rows)}\n\n{_caption(experiments)}"


def summary_table() -> str:
    """Markdown: the means of the paper's main tables beside ours."""
    rows = []
    for name in ("pascal", "coco", "fss", "coco-to-pascal"):
        experiments = experiments_of(name)
        _caption(experiments)  # refuses what must not stand together
        for row in dict.fromkeys(experiment.row for experiment in experiments):
            group = [experiment for experiment in experiments if experiment.row == row]
            found = [numbers for s in group[0].shots for numbers in (_printed(group[0], s), _measured(group, s))]
            rows.append([row, *(numbers.get("mean", "–") for numbers in found)])
    return markdown(["mean mIoU over the folds", *(f"{s}-shot, {w}" for s in (1, 5) for w in ("paper", "ours"))], rows)


# What must be equal in the tests of one benchmark that stand in one table, and in the trainings behind them.
COMPARABLE, COMPARABLE_TRAINING = ("protocol", "size", "digest", "source", "rule"), ("novel_images", "boundary")


def _caption(experiments: list[Experiment]) -> str:
    """How our numbers came about, of the tests' own files.

    Raises:
        ValueError: tests that cannot be compared, naming what differs.
    """
    kinds: dict[str, set[str]] = {}
    for experiment in experiments:
        for test in (test for kind in experiment.kinds for test in experiment.tests(*kind).values()):
            same = {key: test[key] for key in COMPARABLE if key in test}
            same |= {
                key: test.get("training", {})[key] for key in COMPARABLE_TRAINING if key in test.get("training", {})
            }
            kinds.setdefault(experiment.benchmark, set()).add(json.dumps(same, sort_keys=True))
    for benchmark, found in kinds.items():
        if len(found) > 1:
            raise ValueError(
                f"tests of {benchmark} that must not stand in one table: {' and '.join(sorted(found))}. Test the runs again "
                "with `python -m hsnet.reproduce`"
            )
    ours = [f"{benchmark}: {_spelled(json.loads(next(iter(found))))}" for benchmark, found in kinds.items()]
    return (
        "`–`: not reported, or not run; `?`: a number of the paper found in no second place; a mean is one over all folds. "
        + (f"{CHOSEN} Ours: {'; '.join(ours)}." if ours else "Ours: nothing was run yet.")
    )


CHOSEN = (
    "The best epoch is the one with the highest 1-shot validation mIoU. On PASCAL-5i and COCO-20i the paper validates on "
    "the very episodes that it reports, and so do we under the official protocol: such a best epoch is chosen on the test. "
    "FSS-1000 has validation classes of its own. The last epoch is 100 after the best: what it "
    "scores less is what choosing gains."
)


def _spelled(kind: dict) -> str:
    words = [f"{kind['protocol']} protocol", f"{kind['size']} px"]
    source = kind.get("source", {})
    if source.get("lists") == "annotations":
        words.append("lists of our own")
    if masks := {"authors": "the authors' masks", "ours": "masks built here"}.get(source.get("source")):
        crowd = {True: ", crowds included", False: ", without crowds"}.get(source.get("crowd"), "")
        words.append(masks + crowd)
    if source.get("episodes") == "ours":
        words.append("our episodes")
    words += [f"{key.replace('_', ' ')}: {kind[key]}" for key in ("novel_images", "boundary", "rule") if key in kind]
    return ", ".join(words)


def read_speed(name: str) -> dict:
    """A file of `hsnet.speed`.

    Raises:
        FileNotFoundError: there is none of this name.
    """
    path = data_folder() / "speed" / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(f"no {path}: write it with `python -m hsnet.speed --name {name}`")
    return json.loads(path.read_text())


def speed_table(result: dict) -> str:
    """Markdown: seconds of the plain path and of the library, and their ratio; a fitted segmenter's first and further query."""
    rows = []
    plain = {r["what"]: r["seconds"] for r in result["whole"] if r["path"] == "plain"}
    for r in result["whole"]:
        if r["path"] == "fast":
            ratio = plain[r["what"]] / r["seconds"]
            rows.append(
                [f"{r['what']}, {r['precision']}", _time(plain[r["what"]]), _time(r["seconds"]), f"{ratio:.2f}"]
            )
    for r in result["segmenter"]:
        what = f"`Segmenter`, {r['shot']} support{'s'[: r['shot'] > 1]}: first and further query"
        rows.append([what, _time(r["first"]), _time(r["further"]), f"{r['first'] / r['further']:.2f}"])
    return markdown([f"{result['backbone']}, {result['size']} px", "plain path", "library", "times as fast"], rows)


def _time(seconds):
    return f"{seconds:.2f} s" if seconds >= 0.15 else f"{1000 * seconds:.0f} ms"


def memory_table(result: dict) -> str:
    """Markdown: peak memory beyond the weights, plain path and library, by size."""
    found = {(r["what"], r["size"], r["path"]): r["bytes"] for r in result["memory"]}
    rows = []
    for what, size in dict.fromkeys((w, s) for w, s, _ in found):
        plain, fast = found[what, size, "plain"], found[what, size, "fast"]
        sizes = [f"{b / 1e9:.2f} GB" if b else "–" for b in (plain, fast)]
        rows.append([f"{what}, {size} px", *sizes, f"{100 * fast / plain:.0f} %" if plain and fast else "–"])
    return markdown(["peak beyond the weights", "plain path", "library", "share"], rows)


def precision_table(result: dict) -> str:
    """Markdown: a run's test score in each precision, and by how much it moves, from a file of `hsnet.speed --score`."""
    rows = []
    for r in result["rows"]:
        low, high = r["difference_interval"]
        moved = f"{r['difference']:+.2f} [{low:+.2f}, {high:+.2f}]" if r["precision"] != "float32" else "–"
        rows.append([r["precision"], _cells(r)[0], moved, str(r["episodes"])])
    return markdown(["precision", "1-shot mIoU [95 %]", "moved by [95 %]", "episodes"], rows)


def fits_table(result: dict) -> str:
    """Markdown: the memory of a training step by setting, and how many episodes at a time fit into how much."""
    rooms = (4, 8, 12, 24)
    rows = []
    for r in result["rows"]:
        what = f"{r['backbone']}, {r['size']} px, {r['precision']}" + ", `--recompute`" * r["recompute"]
        fits = [int((room * 1e9 - r["fixed"]) // r["each"]) for room in rooms]
        counts = [str(n) if n > 0 else "–" for n in fits]
        rows.append([what, f"{r['fixed'] / 1e9:.2f} GB", f"{r['each'] / 1e9:.3f} GB", *counts])
    header = ["training step", "whatever the batch", "each episode at a time"]
    return markdown([*header, *(f"fit in {room} GB" for room in rooms)], rows)


def render(text: str) -> str:
    """Replace what stands between `<!-- WHAT NAME -->` and `<!-- end -->` by a table of what files say.

    WHAT: "speed" and "memory", of a file of `hsnet.speed`; "precision", of one of `hsnet.speed --score`; "fits",
    of one of `hsnet.memory`; "paper", a table of the paper beside ours; "results", the means
    of all; "experiments", the state of all experiments; "others", later methods; "run", test scores of a run; "controls", those of
    `evaluate --controls`; anything else, such as "coco-fold0", a run's scores on another benchmark.
    """

    def table(match):
        what, name = match.groups()
        return f"<!-- {what} {name} -->\n{BLOCKS.get(what, lambda n: _run_table(n, what))(name)}\n<!-- end -->"

    return re.sub(r"<!-- (\S+) (\S+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


BLOCKS: dict[str, Callable[[str], str]] = {
    "speed": lambda name: speed_table(read_speed(name)),
    "memory": lambda name: memory_table(read_speed(name)),
    "precision": lambda name: precision_table(read_speed(name)),
    "fits": lambda name: fits_table(read_speed(name)),
    "paper": paper_and_ours,
    "results": lambda _: summary_table(),
    "experiments": lambda protocol: f"{experiments_table(protocol=protocol)}\n\n{expectation()}",
    "others": lambda _: others_table(),
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
    argparse.ArgumentParser(
        prog="python -m hsnet.reproduce.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()
    for page in PAGES:
        page.write_text(render(page.read_text()))
        print(f"written to {page}")


if __name__ == "__main__":
    run_program(main)
