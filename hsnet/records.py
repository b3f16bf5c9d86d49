"""The files of a run, and tables made from them.

python -m hsnet.records      write the tables of README.md and data/runs/README.md again from the files of the runs
"""

import argparse
import csv
import json
import re
from pathlib import Path

from .config import data_folder, run_program
from .metrics import SegmentationScore

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "data" / "runs" / "README.md")  # what holds tables of runs


def write_json(path: Path, content: dict) -> None:
    """Write JSON under a temporary name, then rename it. Innermost lists stand on one line each."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(_lines(content) + "\n")
    temporary.replace(path)


def _lines(value, indent=0) -> str:
    inner, outer = " " * (indent + 1), " " * indent
    if isinstance(value, dict) and value:
        parts = [f"{inner}{json.dumps(k)}: {_lines(v, indent + 1)}" for k, v in value.items()]
        return "{\n" + ",\n".join(parts) + f"\n{outer}}}"
    if isinstance(value, list) and value and isinstance(value[0], (list, dict)):
        return "[\n" + ",\n".join(inner + _lines(v, indent + 1) for v in value) + f"\n{outer}]"
    return json.dumps(value)


def read_tests(folder: Path, before: str = "") -> list[dict]:
    """The `test-*.json` files of a run, by shot; with `before`, such as "coco-fold0-", those on another benchmark, of any length."""
    files = folder.glob(f"{before}test-*shot*.json" if before else "test-*shot.json")
    return sorted((json.loads(file.read_text()) for file in files), key=lambda test: test["shot"])


def run_score(run: str, name: str = "HSNet", shot: int = 1, count: int | None = None) -> SegmentationScore:
    """What a run stored of its test: the score over the first `count` episodes (default: all).

    Args:
        name: "HSNet" or "prototypes".

    Raises:
        FileNotFoundError: a run that was not tested with this shot, saying how to.
    """
    path = data_folder() / "runs" / run / f"test-{shot}shot.json"
    if not path.exists():
        raise FileNotFoundError(f"no {path}: write it with `python -m hsnet.evaluate {run} --shot {shot}`")
    test = json.loads(path.read_text())
    rows = test["areas"][name][:count]
    score = SegmentationScore(sorted({row[0] for row in rows}), test["resample_classes"])
    score.rows = rows
    return score


def scores_table(tests: list[dict]) -> str:
    """Markdown: a row a predictor, mIoU with its 95 % interval and FB-IoU for each number of shots.

    Raises:
        ValueError: scores of different test scenes, which must not stand in one table.
    """
    digests = {t["digest"] for t in tests}
    if len(digests) > 1:
        raise ValueError(
            f"these scores are of different test scenes (digests {', '.join(sorted(digests))}): evaluate the runs again"
        )
    names = list(dict.fromkeys(name for t in tests for name in t["scores"]))
    header = [""]
    for test in tests:
        episodes = max((score.get("episodes", 0) for score in test["scores"].values()), default=0)
        header += [f"{test['shot']}-shot mIoU [95 %], {episodes} episodes", f"{test['shot']}-shot FB-IoU"]
    rows = [[name] + [cell for t in tests for cell in _cells(t["scores"].get(name))] for name in names]
    return markdown(header, rows)


def _cells(score):
    if score is None:
        return ["–", "–"]
    low, high = score["interval"]
    return [f"{score['miou']:.1f} [{low:.1f}, {high:.1f}]", f"{score['fb_iou']:.1f}"]


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table whose columns line up in a terminal too."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [" | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in [header, *rows]]
    lines.insert(1, "-|-".join("-" * w for w in widths))
    return "\n".join(f"| {line} |" if "-|-" not in line else f"|-{line}-|" for line in lines)


def runs_table() -> str:
    """Markdown: every run of the data folder with its settings and scores."""
    rows = []
    for folder in sorted((data_folder() / "runs").glob("*/")):
        if not (folder / "config.json").exists():
            continue
        config = json.loads((folder / "config.json").read_text())
        history = folder / "history.jsonl"
        epochs = sum(1 for _ in history.open()) if history.exists() else 0
        tests = {t["shot"]: t["scores"]["HSNet"] for t in read_tests(folder)}
        scores = [_cells(tests.get(shot))[0] for shot in (1, 5)]
        names = ("benchmark", "fold", "backbone", "kernel", "size")
        rows.append([folder.name, *(str(config[n]) for n in names), str(epochs), *scores])
    if not rows:
        return f"no runs under {data_folder() / 'runs'} yet: `make train` trains one"
    return markdown(
        [
            "run",
            "benchmark",
            "fold",
            "backbone",
            "kernel",
            "size",
            "epochs",
            "1-shot mIoU [95 %]",
            "5-shot mIoU [95 %]",
        ],
        rows,
    )


def paper_results() -> list[dict[str, str]]:
    """What the paper reports: the rows of `data/paper/results.csv`."""
    return list(csv.DictReader((ROOT / "data" / "paper" / "results.csv").open()))


def paper_table() -> str:
    """Markdown: the paper's mean mIoU, 1- and 5-shot, by benchmark and backbone; in brackets how many sources agree."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for row in paper_results():
        if row["what"] == "mean" and row["sources"] != "unconfirmed":
            cells.setdefault((row["benchmark"], row["backbone"]), {})[row["shot"]] = (
                f"{row['value']} [{row['sources']}]"
            )
    header = ["benchmark", "backbone", "1-shot mIoU", "5-shot mIoU"]
    return markdown(header, [[*key, found.get("1", "–"), found.get("5", "–")] for key, found in cells.items()])


def paper_kernels_table() -> str:
    """Markdown: what the paper reports of the cost of its kernels."""
    rows = csv.DictReader((ROOT / "data" / "paper" / "kernels.csv").open())
    header = ["kernel", "time", "memory", "FLOPs", "parameters"]
    forms = ("{kernel}", "{milliseconds} ms", "{gigabytes} GB", "{gflops} G", "{million_parameters} M")
    return markdown(header, [[form.format(**row) for form in forms] for row in rows])


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
                [f"{r['what']}, {r['precision']}", f"{plain[r['what']]:.2f} s", f"{r['seconds']:.2f} s", f"{ratio:.2f}"]
            )
    for r in result["segmenter"]:
        what = f"`Segmenter`, {r['shot']} support{'s'[: r['shot'] > 1]}: first and further query"
        rows.append([what, f"{r['first']:.2f} s", f"{r['further']:.2f} s", f"{r['first'] / r['further']:.2f}"])
    return markdown([f"{result['backbone']}, {result['size']} px", "plain path", "library", "times as fast"], rows)


def memory_table(result: dict) -> str:
    """Markdown: peak memory beyond the weights, plain path and library, by size."""
    found = {(r["what"], r["size"], r["path"]): r["bytes"] for r in result["memory"]}
    rows = []
    for what, size in dict.fromkeys((w, s) for w, s, _ in found):
        plain, fast = found[what, size, "plain"], found[what, size, "fast"]
        cells = [f"{b / 1e9:.2f} GB" if b else "–" for b in (plain, fast)]
        rows.append([f"{what}, {size} px", *cells, f"{100 * fast / plain:.0f} %" if plain and fast else "–"])
    return markdown(["peak beyond the weights", "plain path", "library", "share"], rows)


def fits_table(result: dict) -> str:
    """Markdown: the memory of a training step by setting, and how many episodes at a time fit into how much."""
    rooms = (4, 8, 12, 24)
    rows = []
    for r in result["rows"]:
        what = f"{r['backbone']}, {r['size']} px, {r['precision']}" + ", `--recompute`" * r["recompute"]
        fits = [int((room * 1e9 - r["fixed"]) // r["each"]) for room in rooms]
        cells = [str(n) if n > 0 else "–" for n in fits]
        rows.append([what, f"{r['fixed'] / 1e9:.2f} GB", f"{r['each'] / 1e9:.3f} GB", *cells])
    header = ["training step", "whatever the batch", "each episode at a time"]
    return markdown([*header, *(f"fit in {room} GB" for room in rooms)], rows)


def render(text: str) -> str:
    """Replace what stands between `<!-- WHAT NAME -->` and `<!-- end -->` by a table from that run's files.

    WHAT: "speed" and "memory", of a file of `hsnet.speed`; "fits", of one of `hsnet.memory`; "run", its test scores; "controls", those of `evaluate --controls`; anything else, such as "coco-fold0", the scores
    on another benchmark.
    """

    def table(match):
        what, run = match.groups()
        if what in ("speed", "memory", "fits"):
            made = {"speed": speed_table, "memory": memory_table, "fits": fits_table}[what](read_speed(run))
            return f"<!-- {what} {run} -->\n{made}\n<!-- end -->"
        folder = data_folder() / "runs" / run
        if what == "run":
            tests = read_tests(folder)
        elif what == "controls":
            tests = [json.loads(p.read_text()) for p in folder.glob("controls.json")]
        else:
            tests = read_tests(folder, f"{what}-")
        return f"<!-- {what} {run} -->\n{scores_table(tests) if tests else '–'}\n<!-- end -->"

    return re.sub(r"<!-- (\S+) (\S+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def main() -> None:
    """The program."""
    argparse.ArgumentParser(
        prog="python -m hsnet.records", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    for page in PAGES:
        page.write_text(render(page.read_text()))
        print(f"written to {page}")


if __name__ == "__main__":
    run_program(main)
