"""Tables of the measurements of `hsnet.speed` and `kit.gpu`."""

import csv
import hashlib
import json
import statistics
from pathlib import Path

import hsnet
from hsnet.paths import SHIPPED, data_folder
from hsnet.runs import markdown


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
    """Markdown: seconds of the plain path and of the library, with their ratio; and those of a segmenter's queries."""
    plain = {r["what"]: r["seconds"] for r in result["whole"] if r["path"] == "plain"}
    pairs = [
        (f"{r['what']}, {r['precision']}", plain[r["what"]], r["seconds"])
        for r in result["whole"]
        if r["path"] == "fast"
    ]
    queries = [(f"{r['shot']}-shot", r["first"], r["further"]) for r in result["segmenter"]]
    heading = f"{result['backbone']}, {result['size']} px"
    passes = _ratios([heading, "plain path", "library", "times as fast"], pairs)
    return passes + "\n\n" + _ratios(["`Segmenter`", "fit and first query", "further query", "times as fast"], queries)


def _ratios(header, pairs):
    return markdown(header, [[what, _time(slow), _time(fast), f"{slow / fast:.2f}"] for what, slow, fast in pairs])


def _time(seconds):
    return f"{seconds:.2f} s" if seconds >= 0.15 else f"{1000 * seconds:.0f} ms"


def memory_table(result: dict) -> str:
    """Markdown: peak memory beyond the weights, plain path and library, by size."""
    found = {(r["what"], r["size"], r["path"]): r["bytes"] for r in result["memory"]}
    rows = []
    for what, size in dict.fromkeys((w, s) for w, s, _ in found):
        plain, fast = found[what, size, "plain"], found[what, size, "fast"]
        peaks = [f"{b / 1e9:.2f} GB" if b else "–" for b in (plain, fast)]
        rows.append([f"{what}, {size} px", *peaks, f"{100 * fast / plain:.0f} %" if plain and fast else "–"])
    return markdown(["peak beyond the weights", "plain path", "library", "share"], rows)


def precision_table(result: dict) -> str:
    """Markdown: a run's test score in each precision, and by how much it moves, from `data/speed/cpu-score.json`."""
    rows = []
    for r in result["rows"]:
        (low, high), (least, most) = r["interval"], r["difference_interval"]
        moved = f"{r['difference']:+.2f} [{least:+.2f}, {most:+.2f}]".replace("-", "−")
        moved = moved if r["precision"] != "float32" else "–"
        rows.append([r["precision"], f"{r['miou']:.2f} [{low:.2f}, {high:.2f}]", moved, str(r["episodes"])])
    return markdown(["precision", "1-shot mIoU [95 %]", "change [95 %]", "episodes"], rows)


def stages_table(rows: list[dict]) -> str:
    """Markdown: milliseconds, operations and rates of stages, as `measure.measure_stages` returns them."""
    header = ["stage", "path", "ms", "GFLOP", "GFLOP/s", "operations", "read back"]
    return markdown(header, [[r["stage"], r["path"], *_rates(r), *_counts(r)] for r in rows])


def _counts(row):
    return [str(row.get(key, "–")) for key in ("operations", "reading")]


def gpu_report(result: dict) -> str:
    """Markdown: what `kit.gpu` measured: passes, goals, stages, trainings, and what there was no time for."""
    # The compiler's operations cannot be counted: its GFLOP are the figure's.
    gflop = {(r["what"], r["batch"]): r.get("gflop") for r in result["passes"] if r["path"] == "figure"}
    rows = []
    for r in result["passes"]:
        figures = ["out of memory", *["–"] * 4]
        if r["seconds"] is not None:
            share = (
                (r.get("gflop") or gflop[r["what"], r["batch"]] or 0.0)
                / result["limits"][r["precision"]]
                / r["seconds"]
            )
            figures = [f"{1000 * r['seconds']:.1f}", *_counts(r), f"{100 * share:.1f} %", f"{r['bytes'] / 1e9:.2f} GB"]
        rows.append([r["what"], str(r["batch"]), r["path"], r["precision"], *figures])
    header = ["", "episodes", "path", "precision", "ms", "operations", "read back", "of the limit", "peak memory"]
    parts = [f"{result['device']}; PyTorch {result['versions']['torch']}; {result['backbone']}, {result['size']} px"]
    if result["code"] != code_digest():
        parts.append("**Older than the code**, which has changed since.")
    parts += [markdown(header, rows), goals_table(result)]
    for r in result["stages"]:
        parts += [f"Stages in {r['precision']}:", stages_table(r["rows"])]
    for r in result["trainings"]:
        losses = f"loss {r['losses'][0]:.3f} at first, {r['losses'][-1]:.3f} at the end"
        parts.append(f"A training in {r['precision']}: {r['steps']} steps in {r['seconds']:.0f} s, {losses}.")
    if result["skipped"]:
        parts.append(f"Not measured for lack of time: {'; '.join(result['skipped'])}.")
    return "\n\n".join(parts)


def code_digest() -> str:
    """A hash of the files that decide about speed: what was measured with another one is older than the code."""
    folder = Path(hsnet.__file__).parent
    files = [folder / f"{name}.py" for name in ("backbone", "conv4d", "correlation", "engine", "model", "naive")]
    files += sorted(folder.glob("fast/*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def goals_table(result: dict) -> str:
    """Markdown: what a GPU is to reach in bfloat16, and what a file of `kit.gpu` has of it, if it has any."""
    found = {(r["what"], r["batch"], r["path"], r["precision"]): r for r in result["passes"] if r["seconds"]}
    ways = "figure", "compiled"
    step, one = (
        min((r["seconds"] for way in ways if (r := found.get((*what, way, "bfloat16")))), default=None)
        for what in (("training step", 20), ("1-shot", 1))
    )
    plain = found.get(("training step", 20, "plain", "float32"))
    figure = found.get(("training step", 20, "figure", "bfloat16"))
    with (SHIPPED / "paper" / "training.csv").open() as file:
        authors = next(row for row in csv.DictReader(file) if row["benchmark"] == "PASCAL-5i")
    folds = zip(authors["iterations"].split("/"), authors["best_epochs_resnet50"].split("/"), strict=True)
    steps = statistics.mean(int(iterations) * int(epochs) for iterations, epochs in folds)
    fold = f"training on a fold of PASCAL-5i: {steps:,.0f} steps, the mean of four folds up to the authors' best epoch"
    rows = [
        ["a training step of 20 episodes, compared with the plain path in float32", "at least 3 times as fast"],
        ["FLOP/s of this step, compared with the GPU's largest measured rate of a matrix product", "at least 30 %"],
        [fold, "under 3 hours"],
        ["one 1-shot prediction, ResNet-50, 400 px", "at most 12 ms"],
    ]
    measured = [
        f"{plain['seconds'] / step:.1f}" if plain and step else "–",
        f"{100 * figure['gflop'] / result['limits']['bfloat16'] / step:.0f} %" if figure else "–",
        f"{steps * step / 3600:.1f} hours" if step else "–",
        f"{1000 * one:.1f} ms" if one else "–",
    ]
    if not found:
        return markdown(["in bfloat16", "goal"], rows)
    return markdown(["in bfloat16", "goal", "measured"], [[*row, m] for row, m in zip(rows, measured, strict=True)])


def _rates(row):
    seconds, flop = row["seconds"], row["gflop"]
    return [f"{1000 * seconds:.1f}", f"{flop:.2f}", f"{flop / seconds:.0f}"]
