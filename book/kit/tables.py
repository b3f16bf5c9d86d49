"""The tables of the README and the pages, rendered from the files of runs: `PYTHONPATH=book python -m kit.tables`."""

import csv
import json
import re
from collections.abc import Callable

from hsnet.config import run_program
from hsnet.paths import ROOT, data_folder
from hsnet.reproduce.experiments import by_row, experiments_of, read_paper
from hsnet.reproduce.report import caption, measured, printed
from hsnet.runs import markdown, read_history, read_tests, scores_table
from kit.memory import step_memory_table
from kit.speed import read_speed

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


def summary_table() -> str:
    """Markdown: the means of the paper's main tables beside ours."""
    rows = []
    for name in ("pascal", "coco", "fss", "coco-to-pascal"):
        experiments = experiments_of(name)
        caption(experiments)  # refuses what must not stand in one table
        for row, group in by_row(experiments).items():
            pairs = [(printed(group[0], shot), measured(group, shot)) for shot in group[0].shots]
            rows.append([row, *(numbers.get("mean") for pair in pairs for numbers in pair)])
    return markdown(["mean mIoU over the folds", *(f"{s}-shot, {w}" for s in (1, 5) for w in ("paper", "ours"))], rows)


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


def run_table(run: str) -> str:
    """Markdown: the test scores of a run; "–" without any."""
    tests = read_tests(data_folder() / "runs" / run)
    return scores_table(tests) if tests else "–"


BLOCKS: dict[str, Callable[[str], str]] = {
    "step-memory": lambda name: step_memory_table(read_speed(name)),
    "networks": lambda _: networks_table(),
    "scores": results_table,
    "run": run_table,
}


def render(text: str) -> str:
    """Replace what stands between `<!-- WHAT NAME -->` and `<!-- end -->` by the table that `BLOCKS[WHAT]` makes of NAME."""

    def table(match):
        what, name = match.groups()
        return f"<!-- {what} {name} -->\n{BLOCKS[what](name)}\n<!-- end -->"

    return re.sub(r"<!-- (\S+) (\S+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def main() -> None:
    """The program."""
    for page in PAGES:
        page.write_text(render(page.read_text()))
        print(f"written to {page}")


if __name__ == "__main__":
    run_program(main)
