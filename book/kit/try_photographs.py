"""How good is `Segmenter` on photographs? Fit on a few pictures of a class of COCO, segment its other pictures.

    python book/kit/try_photographs.py --root FOLDER                       writes photographs.json into the run's folder
    python book/kit/try_photographs.py --root FOLDER --aspect pad          adds the same with padded pictures
    python book/kit/try_photographs.py --root FOLDER --sheet FILE.png      also draws pictures to look at
    python book/kit/try_photographs.py --root FOLDER --features            instead: what the features alone tell apart,
                                                                        and what the best threshold of each picture would give
    python book/kit/try_photographs.py                                     prints the tables of what was measured

FOLDER holds COCO, or any part of it, as `hsnet.train --benchmark coco` takes it. Of the twenty classes with the most
pictures (those that they cover at least 32 × 32 pixels of) at most fifteen are asked, each once, with supports drawn from
the class's others; masks are compared at the pictures' own size.
Beside it the prototypes of the same backbone at the same size, whose level and rule are chosen on pictures of the other
classes. What is written are areas and scores, no pictures.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch.nn import functional as F
from tqdm import tqdm

from hsnet import figures, runs
from hsnet.baselines import Prototypes
from hsnet.benchmarks import Sample, load_benchmark
from hsnet.benchmarks.coco import AnnotatedCoco
from hsnet.config import run_program
from hsnet.correlation import correlate, mask_features, resize_mask
from hsnet.devices import choose_device, describe
from hsnet.metrics import SegmentationScore
from hsnet.model import vote
from hsnet.runs import run_folder
from hsnet.segmenter import ASPECTS, Segmenter, from_square, square_image, square_mask

CLASSES = 20
MOST_QUERIES = 15  # of a class
SHOTS = (1, 2, 3, 4, 5)
STORED = (1, 5)  # shots whose areas are stored, episode by episode
SIZES = ((0.0, 0.02), (0.02, 0.1), (0.1, 0.3), (0.3, 1.01))  # shares of the picture that the object covers
USEFUL = 50  # percent: an IoU from which on a mask is called useful
NAMES = ("HSNet", "prototypes")
SCENES = ("emoji-photo", "emoji")  # whose training scenes are compared with photographs

Question = tuple[int, str, list[str]]  # class id, the query's name, its supports' names


def questions(benchmark: AnnotatedCoco, seed: int = 0) -> tuple[list[Question], list[Question]]:
    """What is asked: of the classes with the most pictures, and, to choose the prototypes' rule, of the others.

    Raises:
        ValueError: too few pictures: twenty classes with six or more are needed, one to ask and five supports.
    """
    rng = np.random.default_rng(seed)
    names = {}
    for c in range(len(benchmark.class_names)):
        lists = [benchmark.images(c % benchmark.folds, "test"), benchmark.images((c + 1) % benchmark.folds, "train")]
        names[c] = [name for images in lists for name in images.get(c, [])]
    ordered = sorted(names, key=lambda c: -len(names[c]))
    chosen, others = sorted(ordered[:CLASSES]), [c for c in ordered[CLASSES:] if len(names[c]) >= 2]
    least = min(len(names[c]) for c in chosen)
    if least <= max(SHOTS) or not others:
        raise ValueError(
            f"{benchmark.root} has {sum(len(n) > max(SHOTS) for n in names.values())} classes with more than "
            f"{max(SHOTS)} pictures and {len(others)} others to choose the prototypes' rule on: {CLASSES} and one are needed"
        )

    def asked(c, most):
        for query in rng.permutation(names[c])[:most].tolist():
            supports = rng.permutation([n for n in names[c] if n != query]).tolist()
            yield c, query, supports[: max(SHOTS)]

    return [q for c in chosen for q in asked(c, MOST_QUERIES)], [q for c in others for q in asked(c, 4)]


def fit_prototypes(segmenter: Segmenter, benchmark: AnnotatedCoco, asked: list[Question]) -> Prototypes:
    """Choose the prototypes' level and rule, 1-shot, on pictures of classes that are not tested."""
    prototypes = Prototypes()
    for class_id, query, supports in tqdm(asked, desc="fitting prototypes", unit="picture", leave=False):
        samples = [benchmark.read(name, class_id) for name in (query, supports[0])]
        levels, masks = _features(segmenter, samples)
        query_levels, support_levels = (
            [[f[part] for f in level] for level in levels] for part in (slice(1), slice(1, 2))
        )
        prototypes.observe(query_levels, support_levels, masks[None, 1:], masks[:1])
    return prototypes


def ask(segmenter: Segmenter, prototypes: Prototypes, samples: list) -> dict[str, np.ndarray]:
    """Masks of a query, at its own size, from the first 1, 2, …, K supports.

    Args:
        samples: the query and K supports, `Sample`s.

    Returns:
        By predictor, bool (K, h, w).
    """
    query, *supports = samples
    each = segmenter.fit([s.image for s in supports], [s.mask for s in supports]).predict_each(query.image)
    votes = [vote(torch.tensor(each[None, :k]), "paper")[0].numpy() for k in range(1, len(supports) + 1)]
    levels, masks = _features(segmenter, samples)
    side, masks_of_prototypes = segmenter.size, []
    for k in range(1, len(supports) + 1):
        query_levels = [[f[:1] for f in level] for level in levels]
        support_levels = [[f[1 : k + 1] for f in level] for level in levels]
        found = prototypes.predict(query_levels, support_levels, masks[None, 1 : k + 1], (side, side))
        own = from_square(found[None].float(), query.mask.shape, side, segmenter.aspect)
        masks_of_prototypes.append((own[0, 0] > 0.5).cpu().numpy())
    return {"HSNet": np.stack(votes), "prototypes": np.stack(masks_of_prototypes)}


@torch.no_grad()
def _features(segmenter, samples):
    """The backbone's features of samples as one batch, and their masks as the network's squares."""
    squares = torch.stack([square_image(s.image, segmenter.size, segmenter.aspect) for s in samples])
    masks = torch.stack([square_mask(s.mask, segmenter.size, segmenter.aspect) for s in samples])
    backbone = segmenter.model.backbone
    return backbone(backbone.normalize(squares.to(segmenter.device))), masks.to(segmenter.device)


def measure(segmenter: Segmenter, benchmark: AnnotatedCoco, sheet: Path | None = None) -> dict:
    """Ask everything; see the module's docstring.

    Args:
        sheet: where to draw the first three questions of each class.

    Returns:
        What is stored: per number of supports the scores, their difference, and tables by size; the areas of each episode.
    """
    asked, others = questions(benchmark)
    prototypes = fit_prototypes(segmenter, benchmark, others)
    class_ids = sorted({c for c, _, _ in asked})
    scores = {(name, k): SegmentationScore(class_ids, resample_classes=True) for name in NAMES for k in SHOTS}
    shares, drawn = [], {}
    for class_id, query, supports in tqdm(asked, desc="photographs", unit="picture"):
        samples = [benchmark.read(name, class_id) for name in (query, *supports)]
        answers = ask(segmenter, prototypes, samples)
        truth = samples[0].mask
        shares.append(float(truth.mean()))
        for (name, k), score in scores.items():
            score.update(torch.tensor(answers[name][k - 1 : k]), torch.tensor(truth[None]), [class_id])
        if sheet and len(drawn.setdefault(class_id, [])) < 12:
            support, mask = samples[1].image, samples[1].mask
            shown = [(support, mask), (samples[0].image, truth), *((samples[0].image, answers[n][0]) for n in NAMES)]
            drawn[class_id] += [_small(image, mask) for image, mask in shown]
    if sheet:
        columns = ("support", "truth", *NAMES) * 3
        figures.save(figures.grid([*drawn.values()], [benchmark.class_names[c] for c in drawn], columns), sheet)
    return {
        "aspect": segmenter.aspect,
        "size": segmenter.size,
        "prototypes": prototypes.rule(),
        "classes": {str(c): benchmark.class_names[c] for c in class_ids},
        "device": describe(segmenter.device),
        "torch": torch.__version__,
        "shots": {str(k): _summary({n: scores[n, k] for n in NAMES}, shares) for k in SHOTS},
        "columns": SegmentationScore.COLUMNS,
        "shares": [round(share, 4) for share in shares],
        "areas": {str(k): {n: scores[n, k].rows for n in NAMES} for k in STORED},
    }


def _summary(scores, shares):
    result = {name: score.summary() for name, score in scores.items()}
    result["difference"] = _difference(*scores.values())
    result["by_class"] = {name: {str(c): round(v, 1) for c, v in s.class_iou().items()} for name, s in scores.items()}
    result["by_size"] = []
    for low, high in SIZES:
        inside = [i for i, share in enumerate(shares) if low <= share < high]
        row = {"from": low, "to": min(high, 1.0), "episodes": len(inside)}
        for name, score in scores.items() if inside else ():
            part = _part(score, inside)
            iou = [100 * r[2] / max(r[4], 1) for r in part.rows]
            row[name] = {"miou": round(part.miou(), 1), "useful": round(100 * np.mean(np.array(iou) >= USEFUL), 1)}
        result["by_size"].append(row)
    return result


def _part(score, episodes):
    part = SegmentationScore(score.class_ids)
    part.rows = [score.rows[i] for i in episodes]
    return part


def _difference(ours: SegmentationScore, theirs: SegmentationScore, samples: int = 1000) -> dict:
    """mIoU of the one minus the other's, with its 95 % bootstrap interval: the same episodes and classes for both."""
    rng = np.random.default_rng(0)
    tables = [np.array(score.rows) for score in (ours, theirs)]
    classes = np.unique(tables[0][:, 0])
    iou = np.empty((2, samples, len(classes)))
    for i, c in enumerate(classes):
        members = np.flatnonzero(tables[0][:, 0] == c)
        weights = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=samples)
        for j, table in enumerate(tables):
            iou[j, :, i] = 100 * (weights @ table[members, 2]) / np.maximum(weights @ table[members, 4], 1)
    drawn = rng.integers(0, len(classes), (samples, len(classes)))
    means = np.take_along_axis(iou[0] - iou[1], drawn, axis=1).mean(axis=1)
    return {"miou": ours.miou() - theirs.miou(), "interval": [float(q) for q in np.quantile(means, [0.025, 0.975])]}


def separation(segmenter: Segmenter, pairs: list[list[Sample]]) -> list[dict]:
    """How far the frozen features alone tell an object from what is around it, before anything is learned.

    For each position of the query its correlations with the support's object, equation (2): the best of them, and their
    mean weighted by the mask. The answer is how often a position on the object has a higher one than a position off it:
    50 % is chance, 100 % would make learning needless.

    Args:
        pairs: each a query and a support.

    Returns:
        A row a level, fine to coarse: the side of its grid; `best` and `mean`, averaged over layers and pairs, in percent;
        and the number of pairs. Left out are those whose object does not show at the level: in the support at no position,
        or in the query at fewer than two, on it or off it. Without a pair both are None.
    """
    found: dict[int, list[list[float]]] = {}
    for samples in tqdm(pairs, desc="features", unit="pair", leave=False):
        levels, masks = _features(segmenter, samples)
        support = mask_features([[f[1:] for f in level] for level in levels], masks[1:])
        for query_level, support_level in zip(levels, support, strict=True):
            side = query_level[0].shape[-1]
            share, weight = resize_mask(masks.float(), query_level[0].shape[-2:])[:, 0]
            on, off = share > 0.5, share < 0.1
            rows = found.setdefault(side, [])
            if min(on.sum(), off.sum()) < 2 or not weight.any():
                continue
            ways = []  # a row a layer
            for q, s in zip(query_level, support_level, strict=True):
                correlation = correlate(q[:1], s)[0].flatten(2)
                scores = correlation.amax(-1), correlation @ weight.flatten()
                ways.append([_ordered(score[on], score[off]) for score in scores])
            rows.append(np.mean(ways, axis=0).tolist())
    return [
        {"side": side, "pairs": len(rows)}
        | dict(zip(("best", "mean"), (100 * np.mean(rows, axis=0)).tolist() if rows else (None, None), strict=True))
        for side, rows in found.items()
    ]


def _ordered(higher, lower):
    """The share of the pairs in which the first has the higher value."""
    return (higher[:, None] > lower[None]).float().mean().item()


def measure_features(segmenter: Segmenter, root: str, count: int = 100) -> list[dict]:
    """`separation` of photographs at several sizes, and of training scenes at the segmenter's own size."""
    own, rows = segmenter.size, []
    for size in sorted({own, 400, 512}):
        segmenter.size = size
        benchmark = _photographs(root, size)
        asked = questions(benchmark)[0]
        chosen = np.random.default_rng(0).permutation(len(asked))[:count]
        pairs = [
            [benchmark.read(n, c) for n in (query, supports[0])] for c, query, supports in (asked[i] for i in chosen)
        ]
        rows.append({"pictures": "photographs", "size": size, "levels": separation(segmenter, pairs)})
    segmenter.size = own
    for name in SCENES:
        scenes = load_benchmark(name, size=own)
        rng = np.random.default_rng(0)
        drawn = [scenes.draw(rng, 0, 1) for _ in range(count)]
        pairs = [[scenes.read(n, e.class_id) for n in (e.query, e.supports[0])] for e in drawn]
        rows.append({"pictures": f"training scenes, {name}", "size": own, "levels": separation(segmenter, pairs)})
    return rows


def best_cut(scores: Float[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The mask `scores ≥ t` whose threshold t, chosen with the truth in hand, gives the highest IoU."""
    order = np.argsort(-scores, axis=None)
    ranked = scores.ravel()[order]
    last = np.flatnonzero(np.diff(ranked, append=-np.inf))  # of each run of equal scores: they are cut together
    hits = truth.ravel()[order].cumsum()[last]
    return scores >= ranked[last[np.argmax(hits / (last + 1 + truth.sum() - hits))]]


def measure_cuts(segmenter: Segmenter, root: str) -> list[dict]:
    """Is it the ranking of the pixels that is wrong, or where it is cut? All questions, 1-shot.

    Returns:
        A row a way to rank pixels: its scores when cut as it is (None where nothing says where), and by `best_cut`, which
        no predictor can reach, for it knows the truth; both over all and by the object's share of the picture.
    """
    benchmark = _photographs(root, segmenter.size)
    asked, side = questions(benchmark)[0], segmenter.size
    class_ids = sorted({c for c, _, _ in asked})
    cuts: dict[str, dict[str, SegmentationScore]] = {}
    shares = []
    for class_id, query, supports in tqdm(asked, desc="best cuts", unit="picture", leave=False):
        samples = [benchmark.read(name, class_id) for name in (query, supports[0])]
        truth = samples[0].mask
        shares.append(float(truth.mean()))
        for name, (scores, threshold) in _rankings(segmenter, samples, side).items():
            masks = {"as it is": None if threshold is None else scores > threshold, "best cut": best_cut(scores, truth)}
            of_name = cuts.setdefault(name, {kind: SegmentationScore(class_ids) for kind in masks})
            for kind, mask in masks.items():
                if mask is not None:
                    hit, both = int((mask & truth).sum()), int((mask | truth).sum())
                    of_name[kind].rows.append([class_id, truth.size - both, hit, truth.size - hit, both])
    return [
        {"ranked by": name, "size": side} | {kind: _by_size(s, shares) if s.rows else None for kind, s in kinds.items()}
        for name, kinds in cuts.items()
    ]


@torch.no_grad()
def _rankings(segmenter, samples, side):
    """By name: a score for each pixel of the query, and the threshold above which it is foreground (None: there is none)."""
    query, support = samples
    levels, masks = _features(segmenter, samples)
    query_levels, support_levels = ([[f[part] for f in level] for level in levels] for part in (slice(1), slice(1, 2)))
    best = [
        correlate(q, s)[0].flatten(2).amax(-1)
        for q, s in zip(query_levels[-1], mask_features(support_levels, masks[1:])[-1], strict=True)
    ]
    best = torch.stack(best).mean(0)[None, None]  # over the layers; 1 1 h w
    maps = (
        Prototypes.contrast(query_levels, support_levels, masks[None, 1:], (side, side)),
        F.interpolate(best, (side, side), mode="bilinear", align_corners=True)[0],
    )
    prototypes, best = (
        from_square(square[None], query.mask.shape, side, segmenter.aspect)[0, 0].cpu().numpy() for square in maps
    )
    return {
        "HSNet": (segmenter.fit(support.image, support.mask).predict_proba(query.image), 0.5),
        "prototypes, coarsest level": (prototypes, 0.0),
        "best correlation, coarsest level": (best, None),
        "nothing: all is foreground": (np.zeros(query.mask.shape, np.float32), -1.0),
    }


def _by_size(score, shares):
    result = {"all": score.summary(), "by_size": []}
    for low, high in SIZES:
        inside = [i for i, share in enumerate(shares) if low <= share < high]
        result["by_size"].append(_part(score, inside).miou() if inside else None)
    return result


def cuts_table(rows: list[dict]) -> str:
    """Markdown: `measure_cuts`; mIoU in percent, of the best cuts with 95 % intervals and by the object's share."""
    lines = []
    for row in rows:
        best = row["best cut"]
        low, high = best["all"]["interval"]
        as_it_is = row["as it is"]["all"]["miou"] if row["as it is"] else None
        sizes = ["–" if value is None else f"{value:.1f}" for value in (as_it_is, *best["by_size"])]
        sizes.insert(1, f"{best['all']['miou']:.1f} [{low:.1f}, {high:.1f}]")
        lines.append([row["ranked by"], f"{row['size']} px", *sizes])
    shares = [f"{100 * low:.0f} to {100 * min(high, 1):.0f} %" for low, high in SIZES]
    return runs.markdown(["pixels ranked by", "size", "cut as it is", "best cut [95 %]", *shares], lines)


def features_table(rows: list[dict]) -> str:
    """Markdown: `measure_features`, a column a level; told apart by the best match, by the mean, and of how many pairs."""
    levels = ("fine", "middle", "coarse")
    lines = [
        [row["pictures"], f"{row['size']} px"]
        + [
            f"{level['best']:.0f}, {level['mean']:.0f} % of {level['pairs']}" if level["pairs"] else "–"
            for level in row["levels"]
        ]
        for row in rows
    ]
    return runs.markdown(["pictures", "size", *(f"{level} level" for level in levels)], lines)


def _photographs(root, size):
    benchmark = load_benchmark("coco", size=size, root=root)
    if not isinstance(benchmark, AnnotatedCoco):
        raise ValueError(f"{root} is prepared for COCO-20i: give a folder of COCO without `masks/`")
    return benchmark


def _small(image, mask, side=180):
    return figures.overlay(
        square_image(image, side, "squash").permute(1, 2, 0).numpy(), square_mask(mask, side, "squash").numpy()
    )


def scores_table(results: list[dict]) -> str:
    """Markdown: scores in percent with 95 % intervals, and their difference, by the way pictures become squares and the number of supports."""

    def cell(score, sign=""):
        low, high = score["interval"]
        return f"{score['miou']:{sign}.1f} [{low:.1f}, {high:.1f}]"

    rows = []
    for result in results:
        for k in STORED:
            shot = result["shots"][str(k)]
            scores = [*(cell(shot[name]) for name in NAMES), cell(shot["difference"], "+")]
            rows.append([f"{result['aspect']}, {result['size']} px", str(k), *scores])
    return runs.markdown(["pictures", "supports", *(f"mIoU, {n}" for n in NAMES), "difference"], rows)


def aspects_table(results: list[dict]) -> str:
    """Markdown: what padding adds to HSNet's mIoU on the same questions, with its 95 % interval, at one size.

    Raises:
        ValueError: not one result squashed and one padded.
    """
    by_aspect = {result["aspect"]: result for result in results}
    if sorted(by_aspect) != sorted(ASPECTS) or len(results) != len(ASPECTS):
        raise ValueError(
            f"results of {', '.join(r['aspect'] for r in results)}: one of each of {', '.join(ASPECTS)} is compared"
        )
    rows = []
    for k in STORED:
        scores = {}
        for aspect in ASPECTS:
            scores[aspect] = SegmentationScore([int(c) for c in by_aspect[aspect]["classes"]])
            scores[aspect].rows = by_aspect[aspect]["areas"][str(k)]["HSNet"]
        difference = _difference(scores["pad"], scores["squash"])
        low, high = difference["interval"]
        rows.append([str(k), f"{difference['miou']:+.1f} [{low:.1f}, {high:.1f}]"])
    return runs.markdown(["supports", "padded − squashed, mIoU [95 %]"], rows)


def sizes_table(result: dict) -> str:
    """Markdown: scores by the share of the picture that the object covers, of one way to make squares."""
    rows = []
    for k in STORED:
        for part in result["shots"][str(k)]["by_size"]:
            share = f"{100 * part['from']:.0f} to {100 * part['to']:.0f} %"
            scores = [f"{part[n]['miou']:.1f}" for n in NAMES if n in part]
            scores += [f"{part[n]['useful']:.1f} %" for n in NAMES if n in part]
            rows.append([str(k), share, str(part["episodes"]), *(scores or ["–"] * 4)])
    columns = [f"{what}, {name}" for what in ("mIoU", f"IoU ≥ {USEFUL} %") for name in NAMES]
    return runs.markdown(["supports", "object's share", "asked", *columns], rows)


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        prog="python book/kit/try_photographs.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", nargs="?", default="emoji", help="trained run, by name or folder (default: emoji)")
    parser.add_argument("--root", help="folder of COCO; without it, what was measured is printed")
    parser.add_argument("--aspect", default="squash", help=f"{' or '.join(ASPECTS)} (default: squash)")
    parser.add_argument(
        "--size",
        type=int,
        help="side of the network's squares in pixels (default: the training's; above a multiple of 256 the squeezed "
        "support grows, and weights are read that a smaller training never changed)",
    )
    parser.add_argument(
        "--features", action="store_true", help="measure instead what limits the scores: photograph-features.json"
    )
    parser.add_argument("--sheet", type=Path, help="also draw the first three questions of each class, as PNG")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, … (default: auto)")
    arguments = parser.parse_args()
    path = run_folder(arguments.run) / "photographs.json"
    results = json.loads(path.read_text())["results"] if path.exists() else []
    if arguments.root:
        segmenter = Segmenter(arguments.run, aspect=arguments.aspect, device=str(choose_device(arguments.device)))
        segmenter.size = arguments.size or segmenter.size
        if arguments.features:
            rows, cuts = measure_features(segmenter, arguments.root), []
            for size in sorted({segmenter.size, 400}):
                segmenter.size = size
                cuts += measure_cuts(segmenter, arguments.root)
            runs.write_json(path.with_name("photograph-features.json"), {"rows": rows, "cuts": cuts})
            print(f"{features_table(rows)}\n\n{cuts_table(cuts)}")
            return
        result = measure(segmenter, _photographs(arguments.root, segmenter.size), arguments.sheet)
        kept = [r for r in results if (r["aspect"], r["size"]) != (result["aspect"], result["size"])]
        results = sorted([*kept, result], key=lambda r: (r["size"], r["aspect"] != "squash"))
        runs.write_json(path, {"results": results})
        print(f"written to {path}")
    elif not results:
        raise FileNotFoundError(f"no {path} yet: measure with --root FOLDER, the folder of COCO")
    print(scores_table(results))
    for result in results:
        print(f"\n{result['aspect']}, {result['size']} px:\n{sizes_table(result)}")


if __name__ == "__main__":
    run_program(main)
