"""What a run's tests on photographs say: scores beside the prototypes', and by the size of the object.

python -m hsnet.evaluate RUN --shot 1                 writes test-1shot.json; --shot 5, and --size 400 as well
PYTHONPATH=book python -m kit.photographs RUN         prints the tables
"""

import argparse
import json

import numpy as np

from hsnet.config import run_program
from hsnet.metrics import SegmentationScore
from hsnet.runs import DEFAULT_RUN, markdown, run_folder

LARGER = 400  # pixels a side: the prototypes gain from it
SIZES = ((0.0, 0.02), (0.02, 0.1), (0.1, 0.3), (0.3, 1.01))  # shares of the image that the object covers
USEFUL = 50  # percent: an IoU from which on a mask is called useful


def read(run: str, shot: int) -> dict[str, SegmentationScore]:
    """The scores of a run's test: HSNet, its prototypes at the same size and at 400 px, and all foreground.

    Raises:
        FileNotFoundError: a test that has not been made, with the command.
    """
    found = {}
    for size, before in ((None, ""), (LARGER, f"{LARGER}px-")):
        path = run_folder(run) / f"{before}test-{shot}shot.json"
        if not path.exists():
            option = f" --size {size}" if size else ""
            raise FileNotFoundError(f"no {path}: python -m hsnet.evaluate {run} --shot {shot}{option}")
        test = json.loads(path.read_text())
        areas = test["areas"]
        for name in areas if size is None else ["prototypes"]:
            label = f"{name}, {test['size']} px" if name == "prototypes" else name
            found[label] = SegmentationScore.from_rows(areas[name], resample_classes=True)
    return found


def scores_table(run: str) -> str:
    """Markdown: mIoU in percent with 95 % intervals, and HSNet's lead over the better prototypes, by number of supports."""
    rows, names = [], []
    for shot in (1, 5):
        scores = read(run, shot)
        ours = scores["HSNet"]
        others = {name: score for name, score in scores.items() if name.startswith("prototypes")}
        best = max(others.values(), key=SegmentationScore.miou)
        names = ["HSNet", *others]
        low, high = ours.interval_above(best)
        lead = f"{ours.miou() - best.miou():+.1f} [{low:.1f}, {high:.1f}]"
        rows.append([str(shot), *(_with_interval(scores[name]) for name in names), lead])
    return markdown(["supports", *names, "lead over the better"], rows)


def sizes_table(run: str) -> str:
    """Markdown: mIoU, and the share of masks with an IoU of 50 % or more, by the share of the image that the object covers."""
    rows = []
    for shot in (1, 5):
        scores = read(run, shot)
        areas = np.array(scores.pop("all foreground").rows)
        shares = areas[:, 2] / areas[:, 4]  # its intersection is the object, its union the image
        names = ["HSNet", f"prototypes, {LARGER} px"]
        for low, high in SIZES:
            inside = np.flatnonzero((shares >= low) & (shares < high)).tolist()
            parts = [scores[name].part(inside) for name in names] if inside else []
            useful = [np.mean([100 * r[2] / max(r[4], 1) >= USEFUL for r in part.rows]) for part in parts]
            values = [f"{part.miou():.1f}" for part in parts] + [f"{100 * share:.0f} %" for share in useful]
            share = f"{100 * low:.0f} to {100 * min(high, 1):.0f}\u00a0%"
            rows.append([str(shot), share, str(len(inside)), *(values or ["–"] * 2 * len(names))])
    return markdown(
        ["supports", "object", "episodes", *(f"mIoU, {n}" for n in names), *(f"IoU ≥ {USEFUL} %, {n}" for n in names)],
        rows,
    )


def _with_interval(score):
    low, high = score.interval()
    return f"{score.miou():.1f} [{low:.1f}, {high:.1f}]"


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        prog="python -m kit.photographs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", nargs="?", default=DEFAULT_RUN, help=f"trained run (default: {DEFAULT_RUN})")
    run = parser.parse_args().run
    print(f"{scores_table(run)}\n\n{sizes_table(run)}")


if __name__ == "__main__":
    run_program(main)
