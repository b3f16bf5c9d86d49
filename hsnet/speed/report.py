"""Tables of the measurements of `hsnet.speed`."""

import json

from ..paths import data_folder
from ..runs import markdown


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
    plain = {r["what"]: r["seconds"] for r in result["whole"] if r["path"] == "plain"}
    pairs = [
        (f"{r['what']}, {r['precision']}", plain[r["what"]], r["seconds"])
        for r in result["whole"]
        if r["path"] == "fast"
    ]
    for r in result["segmenter"]:
        what = f"`Segmenter`, {r['shot']} support{'s'[: r['shot'] > 1]}: first and further query"
        pairs.append((what, r["first"], r["further"]))
    rows = [[what, _time(slow), _time(fast), f"{slow / fast:.2f}"] for what, slow, fast in pairs]
    return markdown([f"{result['backbone']}, {result['size']} px", "plain path", "library", "times as fast"], rows)


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
    """Markdown: a run's test score in each precision, and by how much it moves, from a file of `hsnet.speed --score`."""
    rows = []
    for r in result["rows"]:
        (low, high), (least, most) = r["interval"], r["difference_interval"]
        moved = f"{r['difference']:+.2f} [{least:+.2f}, {most:+.2f}]" if r["precision"] != "float32" else "–"
        rows.append([r["precision"], f"{r['miou']:.1f} [{low:.1f}, {high:.1f}]", moved, str(r["episodes"])])
    return markdown(["precision", "1-shot mIoU [95 %]", "moved by [95 %]", "episodes"], rows)


def report(result: dict) -> str:
    """What `hsnet.speed` prints: the limits in words, and a table each of kernels, stages, passes and memory."""
    reached = ", ".join(f"{value:.0f} GFLOP/s in {name}" for name, value in result["limits"]["gflops"].items())
    kernels = [[r["kernel"], f"{r['side']}⁴", *_rates(r), f"{r['parameters']:,}"] for r in result["kernels"]]
    stages = [[r["stage"], r["path"], *_rates(r)] for r in result["stages"]]
    rates = ["ms", "GFLOP", "GFLOP/s"]
    parts = [
        f"{result['device']}; {result['backbone']}, {result['size']} px; mask: {result['mask']}\n"
        f"a large matrix product reaches {reached}",
        markdown(["kernel", "positions", *rates, "parameters"], kernels),
        markdown(["stage", "path", *rates], stages),
        speed_table(result),
        memory_table(result),
    ]
    return "\n\n".join(parts)


def _rates(row):
    seconds, flop = row["seconds"], row["gflop"]
    return [f"{1000 * seconds:.1f}", f"{flop:.2f}", f"{flop / seconds:.0f}"]
