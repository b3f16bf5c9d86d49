"""How good is `Segmenter` on photographs? Fit on pictures of a class of COCO, segment its other pictures.

    export PYTHONPATH=book
    python -m kit.photographs --root FOLDER                    writes photographs.json into the run's folder
    python -m kit.photographs --root FOLDER --aspect pad       adds the same with padded pictures
    python -m kit.photographs                                  prints the tables of what was measured

FOLDER holds COCO, or any part of it, as `hsnet.train --benchmark coco` takes it. Of each of the twenty classes with the most
pictures (those of which they cover at least 32 × 32 pixels) at most fifteen are asked, once each, with supports drawn from
the class's others; masks are compared at the pictures' own size. Beside it stand the prototypes of the same backbone at the
same size. Areas and scores are written, no pictures.
"""

import argparse
import json

import numpy as np
import torch
from tqdm import tqdm

from hsnet.benchmarks import load_benchmark
from hsnet.benchmarks.coco import AnnotatedCoco
from hsnet.config import run_program
from hsnet.devices import describe
from hsnet.metrics import SegmentationScore
from hsnet.runs import DEFAULT_RUN, markdown, run_folder, write_json
from hsnet.segmenter import Segmenter

CLASSES, MOST_QUERIES = 20, 15  # classes that are asked, and of each so many pictures
SHOTS = (1, 5)
SIZES = ((0.0, 0.02), (0.02, 0.1), (0.1, 0.3), (0.3, 1.01))  # shares of the picture that the object covers
USEFUL = 50  # percent: an IoU from which on a mask is called useful
METHODS = {"HSNet": "hsnet", "prototypes": "prototypes"}

Question = tuple[int, str, list[str]]  # class id, the query's name, its supports' names


def questions(benchmark: AnnotatedCoco, seed: int = 0) -> list[Question]:
    """What is asked: of the classes with the most pictures.

    Raises:
        ValueError: too few pictures: twenty classes with six or more are needed, one to ask and five supports.
    """
    rng = np.random.default_rng(seed)
    names = {}
    for c in range(len(benchmark.class_names)):
        lists = [benchmark.images(c % benchmark.folds, "test"), benchmark.images((c + 1) % benchmark.folds, "train")]
        names[c] = [name for images in lists for name in images.get(c, [])]
    most = max(SHOTS)
    if (enough := sum(len(n) > most for n in names.values())) < CLASSES:
        raise ValueError(f"{benchmark.root} has {enough} classes with more than {most} pictures: {CLASSES} are needed")
    asked = []
    for c in sorted(sorted(names, key=lambda c: -len(names[c]))[:CLASSES]):
        for query in rng.permutation(names[c])[:MOST_QUERIES].tolist():
            asked.append((c, query, rng.permutation([n for n in names[c] if n != query]).tolist()[:most]))
    return asked


def measure(segmenters: dict[str, Segmenter], root: str) -> dict:
    """What is stored: by number of supports the scores, their difference, and tables by size; the areas of each episode.

    Args:
        segmenters: by the names of `METHODS`, of one size and aspect.
    """
    segmenter = segmenters["HSNet"]
    benchmark = load_benchmark("coco", size=segmenter.size, root=root)
    if not isinstance(benchmark, AnnotatedCoco):
        raise ValueError(f"{root} is prepared for COCO-20i: give a folder of COCO without `masks/`")
    asked = questions(benchmark)
    class_ids = sorted({c for c, _, _ in asked})
    scores = {k: {name: SegmentationScore(class_ids, resample_classes=True) for name in METHODS} for k in SHOTS}
    shares = []
    for class_id, query, supports in tqdm(asked, desc="photographs", unit="picture"):
        query, *supports = (benchmark.read(name, class_id) for name in (query, *supports))
        shares.append(float(query.mask.mean()))
        for k in SHOTS:
            for name, score in scores[k].items():
                fitted = segmenters[name].fit([s.image for s in supports[:k]], [s.mask for s in supports[:k]])
                mask = torch.tensor(fitted.predict(query.image))
                score.update(mask[None], torch.tensor(query.mask[None]), [class_id])
    return {
        "aspect": "pad" if segmenter.aspect == "pad" else "squash",  # as the recorded results call it
        "size": segmenter.size,
        "classes": {str(c): benchmark.class_names[c] for c in class_ids},
        "device": describe(segmenter.device),
        "torch": torch.__version__,
        "shots": {str(k): _summary(scores[k], shares) for k in SHOTS},
        "columns": SegmentationScore.COLUMNS,
        "shares": [round(share, 4) for share in shares],
        "areas": {str(k): {name: score.rows for name, score in scores[k].items()} for k in SHOTS},
    }


def _summary(scores, shares):
    ours, theirs = scores.values()
    result = {name: score.summary() for name, score in scores.items()}
    result["difference"] = {"miou": ours.miou() - theirs.miou(), "interval": list(ours.interval_above(theirs))}
    result["by_size"] = []
    for low, high in SIZES:
        inside = [i for i, share in enumerate(shares) if low <= share < high]
        row = {"from": low, "to": min(high, 1.0), "episodes": len(inside)}
        for name, score in scores.items() if inside else ():
            part = score.part(inside)
            useful = np.mean([100 * r[2] / max(r[4], 1) >= USEFUL for r in part.rows])
            row[name] = {"miou": round(part.miou(), 1), "useful": round(100 * useful, 1)}
        result["by_size"].append(row)
    return result


def _with_interval(score, sign=""):
    low, high = score["interval"]
    return f"{score['miou']:{sign}.1f} [{low:.1f}, {high:.1f}]"


def scores_table(results: list[dict]) -> str:
    """Markdown: scores in percent with 95 % intervals, and their difference, by aspect, size and number of supports."""
    rows = []
    for result in results:
        for k in map(str, SHOTS):
            shot = result["shots"][k]
            scores = [*(_with_interval(shot[name]) for name in METHODS), _with_interval(shot["difference"], "+")]
            rows.append([f"{result['aspect']}, {result['size']} px", k, *scores])
    return markdown(["pictures", "supports", *(f"mIoU, {n}" for n in METHODS), "difference"], rows)


def sizes_table(result: dict) -> str:
    """Markdown: scores by the share of the picture that the object covers, of one way to make squares."""
    rows = []
    for k in map(str, SHOTS):
        for part in result["shots"][k]["by_size"]:
            scores = [f"{part[n]['miou']:.1f}" for n in METHODS if n in part]
            scores += [f"{part[n]['useful']:.1f} %" for n in METHODS if n in part]
            share = f"{100 * part['from']:.0f} to {100 * part['to']:.0f} %"
            rows.append([k, share, str(part["episodes"]), *(scores or ["–"] * 4)])
    columns = [f"{what}, {name}" for what in ("mIoU", f"IoU ≥ {USEFUL} %") for name in METHODS]
    return markdown(["supports", "object's share", "asked", *columns], rows)


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        prog="python -m kit.photographs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("run", nargs="?", default=DEFAULT_RUN, help=f"trained run (default: {DEFAULT_RUN})")
    option("--root", help="folder of COCO; without it, what was measured is printed")
    option("--aspect", default="resize", help="resize or pad (default: resize)")
    option("--size", type=int, help="side of the network's squares in pixels (default: the training's)")
    option("--device", default="auto", help="auto, cpu, cuda, … (default: auto)")
    arguments = parser.parse_args()
    path = run_folder(arguments.run) / "photographs.json"
    results = json.loads(path.read_text())["results"] if path.exists() else []
    if arguments.root:
        options = {key: getattr(arguments, key) for key in ("aspect", "size", "device")}
        segmenters = {name: Segmenter(arguments.run, method=m, **options) for name, m in METHODS.items()}
        result = measure(segmenters, arguments.root)
        kept = [r for r in results if (r["aspect"], r["size"]) != (result["aspect"], result["size"])]
        results = sorted([*kept, result], key=lambda r: (r["size"], r["aspect"] != "squash"))
        write_json(path, {"results": results})
        print(f"written to {path}")
    elif not results:
        raise FileNotFoundError(f"no {path} yet: measure with --root FOLDER, the folder of COCO")
    print(scores_table(results))
    for result in results:
        print(f"\n{result['aspect']}, {result['size']} px:\n{sizes_table(result)}")


if __name__ == "__main__":
    run_program(main)
