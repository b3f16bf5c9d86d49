"""How good is `Segmenter` on photographs? Fit on a few pictures of a class of COCO, segment its other pictures.

    export PYTHONPATH=book
    python -m kit.photographs --root FOLDER                    writes photographs.json into the run's folder
    python -m kit.photographs --root FOLDER --aspect pad       adds the same with padded pictures
    python -m kit.photographs --root FOLDER --features         instead: what limits the scores, photograph-features.json
    python -m kit.photographs                                  prints the tables of what was measured

FOLDER holds COCO, or any part of it, as `hsnet.train --benchmark coco` takes it. Of each of the twenty classes with the most
pictures (those of which they cover at least 32 × 32 pixels) at most fifteen are asked, once each, with supports drawn from
the class's others; masks are compared at the pictures' own size. Beside it stand the prototypes of the same backbone at the
same size, whose level and rule are chosen on pictures of the other classes. Areas and scores are written, no pictures.
"""

import argparse
import json

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch.nn import functional as F
from tqdm import tqdm

from hsnet.baselines import Prototypes
from hsnet.benchmarks import Sample, load_benchmark
from hsnet.benchmarks.coco import AnnotatedCoco
from hsnet.config import run_program
from hsnet.correlation import correlate, mask_features, resize_mask
from hsnet.devices import choose_device, describe
from hsnet.metrics import SegmentationScore
from hsnet.model import vote
from hsnet.runs import markdown, run_folder, write_json
from hsnet.segmenter import Segmenter, from_square, square_image, square_mask

CLASSES, MOST_QUERIES = 20, 15  # classes that are asked, and of each so many pictures
SHOTS, STORED = (1, 2, 3, 4, 5), (1, 5)  # numbers of supports; those whose areas are stored, episode by episode
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
    if min(len(names[c]) for c in chosen) <= max(SHOTS) or not others:
        raise ValueError(
            f"{benchmark.root} has {sum(len(n) > max(SHOTS) for n in names.values())} classes with more than "
            f"{max(SHOTS)} pictures and {len(others)} others to choose the prototypes' rule on: {CLASSES} and one are needed"
        )

    def asked(c, most):
        for query in rng.permutation(names[c])[:most].tolist():
            yield c, query, rng.permutation([n for n in names[c] if n != query]).tolist()[: max(SHOTS)]

    return [q for c in chosen for q in asked(c, MOST_QUERIES)], [q for c in others for q in asked(c, 4)]


@torch.no_grad()
def _features(segmenter, samples):
    """The features of samples as one batch, and their masks as the network's squares."""
    squares = torch.stack([square_image(s.image, segmenter.size, segmenter.aspect) for s in samples])
    masks = torch.stack([square_mask(s.mask, segmenter.size, segmenter.aspect) for s in samples])
    backbone = segmenter.model.backbone
    return backbone(backbone.normalize(squares.to(segmenter.device))), masks.to(segmenter.device)


def _part(levels, begin, end):
    return [[feature[begin:end] for feature in level] for level in levels]


def _own_size(segmenter, square, sample):
    """A map of the network's square, (1, size, size), at the sample's own size."""
    return from_square(square[None], sample.mask.shape, segmenter.size, segmenter.aspect)[0, 0].cpu().numpy()


def ask(segmenter: Segmenter, prototypes: Prototypes, samples: list[Sample]) -> dict[str, np.ndarray]:
    """Masks of a query, at its own size, from the first 1, 2, …, K supports.

    Args:
        samples: the query and K supports.

    Returns:
        By predictor, bool (K, h, w).
    """
    query, *supports = samples
    each = segmenter.fit([s.image for s in supports], [s.mask for s in supports]).predict_each(query.image)
    levels, masks = _features(segmenter, samples)
    votes, found = [], []
    for k in range(1, len(supports) + 1):
        votes.append(vote(torch.tensor(each[None, :k]), "paper")[0].numpy())
        support = _part(levels, 1, k + 1), masks[None, 1 : k + 1]
        answer = prototypes.predict(_part(levels, 0, 1), *support, tuple(masks.shape[-2:]))
        found.append(_own_size(segmenter, answer.float(), query) > 0.5)
    return {"HSNet": np.stack(votes), "prototypes": np.stack(found)}


def measure(segmenter: Segmenter, root: str) -> dict:
    """What is stored: per number of supports the scores, their difference, and tables by size; the areas of each episode."""
    benchmark = _photographs(segmenter, root, segmenter.size)
    asked, others = questions(benchmark)
    prototypes = Prototypes()  # level and rule are chosen 1-shot
    for class_id, query, supports in tqdm(others, desc="fitting prototypes", unit="picture", leave=False):
        levels, masks = _features(segmenter, [benchmark.read(name, class_id) for name in (query, supports[0])])
        prototypes.observe(_part(levels, 0, 1), _part(levels, 1, 2), masks[None, 1:], masks[:1])
    class_ids = sorted({c for c, _, _ in asked})
    scores = {k: {name: SegmentationScore(class_ids, resample_classes=True) for name in NAMES} for k in SHOTS}
    shares = []
    for class_id, query, supports in tqdm(asked, desc="photographs", unit="picture"):
        samples = [benchmark.read(name, class_id) for name in (query, *supports)]
        truth = samples[0].mask
        shares.append(float(truth.mean()))
        for name, masks in ask(segmenter, prototypes, samples).items():
            for k in SHOTS:
                _count(scores[k][name], masks[k - 1], truth, class_id)
    return {
        "aspect": "pad" if segmenter.aspect == "pad" else "squash",  # as the recorded results call it
        "size": segmenter.size,
        "prototypes": prototypes.rule(),
        "classes": {str(c): benchmark.class_names[c] for c in class_ids},
        "device": describe(segmenter.device),
        "torch": torch.__version__,
        "shots": {str(k): _summary(scores[k], shares) for k in SHOTS},
        "columns": SegmentationScore.COLUMNS,
        "shares": [round(share, 4) for share in shares],
        "areas": {str(k): {name: score.rows for name, score in scores[k].items()} for k in STORED},
    }


def _count(score, mask, truth, class_id):
    score.update(torch.tensor(mask[None]), torch.tensor(truth[None]), [class_id])


def _summary(scores, shares):
    ours, theirs = scores.values()
    result = {name: score.summary() for name, score in scores.items()}
    result |= {"difference": _difference(ours, theirs), "by_size": []}
    for (low, high), *parts in zip(SIZES, *(_by_size(score, shares) for score in scores.values()), strict=True):
        row = {"from": low, "to": min(high, 1.0), "episodes": sum(low <= share < high for share in shares)}
        for name, part in zip(scores, parts, strict=True):
            if part:
                useful = np.mean([100 * r[2] / max(r[4], 1) >= USEFUL for r in part.rows])
                row[name] = {"miou": round(part.miou(), 1), "useful": round(100 * useful, 1)}
        result["by_size"].append(row)
    return result


def _by_size(score, shares):
    """The score of the episodes of each of `SIZES`; None where there is none."""
    for low, high in SIZES:
        inside = [i for i, share in enumerate(shares) if low <= share < high]
        yield score.part(inside) if inside else None


def _difference(ours, theirs):
    return {"miou": ours.miou() - theirs.miou(), "interval": list(ours.interval_above(theirs))}


def separation(segmenter: Segmenter, pairs: list[list[Sample]]) -> list[dict]:
    """How far the frozen features alone tell an object from what is around it: how often a position on it has a higher value.

    The values of a query's position are its best correlation with the support's object, equation (2), and the mean of
    all, weighted by the mask: 50 % is chance, 100 % would make learning needless.

    Args:
        pairs: a query and a support each.

    Returns:
        A row a level, fine to coarse: the side of its grid; `best` and `mean`, averaged over layers and pairs, in percent
        (None without a pair); the number of pairs, without those whose object does not show at the level: in the support
        at no position, or in the query at fewer than two, on it or off it.
    """
    found: dict[int, list[np.ndarray]] = {}
    for samples in tqdm(pairs, desc="features", unit="pair", leave=False):
        levels, masks = _features(segmenter, samples)
        support = mask_features(_part(levels, 1, 2), masks[1:])
        for query_level, support_level in zip(levels, support, strict=True):
            share, weight = resize_mask(masks.float(), query_level[0].shape[-2:])[:, 0]
            on, off = share > 0.5, share < 0.1
            rows = found.setdefault(query_level[0].shape[-1], [])
            if min(on.sum(), off.sum()) < 2 or not weight.any():
                continue
            ways = []  # a row a layer
            for q, s in zip(query_level, support_level, strict=True):
                correlation = correlate(q[:1], s)[0].flatten(2)
                scores = correlation.amax(-1), correlation @ weight.flatten()
                ways.append([100 * (m[on][:, None] > m[off]).float().mean().item() for m in scores])
            rows.append(np.mean(ways, axis=0))
    means = {side: np.mean(rows, axis=0).tolist() if rows else (None, None) for side, rows in found.items()}
    return [
        {"side": side, "pairs": len(found[side]), "best": best, "mean": mean} for side, (best, mean) in means.items()
    ]


def measure_features(segmenter: Segmenter, root: str, count: int = 100) -> list[dict]:
    """`separation` of photographs at several sizes, and of training scenes at the segmenter's own size."""

    def row(what, benchmark, asked):
        pairs = [[benchmark.read(name, class_id) for name in names] for class_id, *names in asked]
        return {"pictures": what, "size": segmenter.size, "levels": separation(segmenter, pairs)}

    own, rows = segmenter.size, []
    for size in sorted({own, 400, 512}):
        benchmark = _photographs(segmenter, root, size)
        asked = questions(benchmark)[0]
        chosen = [asked[i] for i in np.random.default_rng(0).permutation(len(asked))[:count]]
        rows.append(row("photographs", benchmark, [(c, query, supports[0]) for c, query, supports in chosen]))
    segmenter.size = own
    for name in SCENES:
        scenes, rng = load_benchmark(name, size=own), np.random.default_rng(0)
        drawn = [scenes.draw(rng, 0, 1) for _ in range(count)]
        rows.append(row(f"training scenes, {name}", scenes, [(e.class_id, e.query, e.supports[0]) for e in drawn]))
    return rows


def best_cut(scores: Float[np.ndarray, "h w"], truth: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """The mask `scores ≥ t` whose threshold t, chosen with the truth in hand, gives the highest IoU."""
    order = np.argsort(-scores, axis=None)
    ranked = scores.ravel()[order]
    last = np.flatnonzero(np.diff(ranked, append=-np.inf))  # of each run of equal scores: they are cut together
    hits = truth.ravel()[order].cumsum()[last]
    return scores >= ranked[last[np.argmax(hits / (last + 1 + truth.sum() - hits))]]


def measure_cuts(segmenter: Segmenter, root: str, size: int) -> list[dict]:
    """Is it the ranking of the pixels that is wrong, or where it is cut? All questions, 1-shot.

    Returns:
        A row a way to rank pixels: its scores when cut as it is (None where nothing says where), and by `best_cut`, which
        no predictor can reach, for it knows the truth; both over all and by the object's share of the picture.
    """
    benchmark = _photographs(segmenter, root, size)
    asked = questions(benchmark)[0]
    class_ids = sorted({c for c, _, _ in asked})
    cuts: dict[str, dict[str, SegmentationScore]] = {}
    shares = []
    for class_id, query, supports in tqdm(asked, desc="best cuts", unit="picture", leave=False):
        samples = [benchmark.read(name, class_id) for name in (query, supports[0])]
        truth = samples[0].mask
        shares.append(float(truth.mean()))
        for name, (scores, threshold) in _rankings(segmenter, samples).items():
            kinds = cuts.setdefault(name, {kind: SegmentationScore(class_ids) for kind in ("as it is", "best cut")})
            _count(kinds["best cut"], best_cut(scores, truth), truth, class_id)
            if threshold is not None:
                _count(kinds["as it is"], scores > threshold, truth, class_id)

    def summary(score):
        return {"all": score.summary(), "by_size": [part and part.miou() for part in _by_size(score, shares)]}

    return [
        {"ranked by": name, "size": segmenter.size}
        | {kind: summary(s) if s.rows else None for kind, s in kinds.items()}
        for name, kinds in cuts.items()
    ]


@torch.no_grad()
def _rankings(segmenter, samples):
    """By name: a score for each pixel of the query, and the threshold above which it is foreground (None: there is none)."""
    query, support = samples
    levels, masks = _features(segmenter, samples)
    query_levels, support_levels, square = _part(levels, 0, 1), _part(levels, 1, 2), tuple(masks.shape[-2:])
    masked = mask_features(support_levels, masks[1:])
    best = [correlate(q, s)[0].flatten(2).amax(-1) for q, s in zip(query_levels[-1], masked[-1], strict=True)]
    best = torch.stack(best).mean(0)[None, None]  # over the layers; 1 1 h w
    best = F.interpolate(best, square, mode="bilinear", align_corners=True)[0]
    contrast = Prototypes.contrast(query_levels, support_levels, masks[None, 1:], square)
    return {
        "HSNet": (segmenter.fit(support.image, support.mask).predict_proba(query.image), 0.5),
        "prototypes, coarsest level": (_own_size(segmenter, contrast, query), 0.0),
        "best correlation, coarsest level": (_own_size(segmenter, best, query), None),
        "nothing: all is foreground": (np.zeros(query.mask.shape, np.float32), -1.0),
    }


def _photographs(segmenter, root, size):
    """The benchmark, for squares of this size, which the segmenter then makes too."""
    segmenter.size = size
    benchmark = load_benchmark("coco", size=size, root=root)
    if not isinstance(benchmark, AnnotatedCoco):
        raise ValueError(f"{root} is prepared for COCO-20i: give a folder of COCO without `masks/`")
    return benchmark


def _with_interval(score, sign=""):
    low, high = score["interval"]
    return f"{score['miou']:{sign}.1f} [{low:.1f}, {high:.1f}]"


def _pixels(row):
    return f"{row['size']} px"


def scores_table(results: list[dict]) -> str:
    """Markdown: scores in percent with 95 % intervals, and their difference, by aspect, size and number of supports."""
    rows = []
    for result in results:
        for k in map(str, STORED):
            shot = result["shots"][k]
            scores = [*(_with_interval(shot[name]) for name in NAMES), _with_interval(shot["difference"], "+")]
            rows.append([f"{result['aspect']}, {_pixels(result)}", k, *scores])
    return markdown(["pictures", "supports", *(f"mIoU, {n}" for n in NAMES), "difference"], rows)


def aspects_table(results: list[dict]) -> str:
    """Markdown: what padding adds to HSNet's mIoU on the same questions, with its 95 % interval: a resized and a padded result."""
    by_aspect = {result["aspect"]: result for result in results}
    rows = []
    for k in map(str, STORED):
        scores = {}
        for aspect, result in by_aspect.items():
            class_ids = [int(c) for c in result["classes"]]
            scores[aspect] = SegmentationScore.from_rows(result["areas"][k]["HSNet"], class_ids, resample_classes=True)
        rows.append([k, _with_interval(_difference(scores["pad"], scores["squash"]), "+")])
    return markdown(["supports", "padded − resized, mIoU [95 %]"], rows)


def sizes_table(result: dict) -> str:
    """Markdown: scores by the share of the picture that the object covers, of one way to make squares."""
    rows = []
    for k in map(str, STORED):
        for part in result["shots"][k]["by_size"]:
            scores = [f"{part[n]['miou']:.1f}" for n in NAMES if n in part]
            scores += [f"{part[n]['useful']:.1f} %" for n in NAMES if n in part]
            rows.append([k, _share(part["from"], part["to"]), str(part["episodes"]), *(scores or ["–"] * 4)])
    columns = [f"{what}, {name}" for what in ("mIoU", f"IoU ≥ {USEFUL} %") for name in NAMES]
    return markdown(["supports", "object's share", "asked", *columns], rows)


def _share(low, high):
    return f"{100 * low:.0f} to {100 * min(high, 1):.0f} %"


def cuts_table(rows: list[dict]) -> str:
    """Markdown: `measure_cuts`; mIoU in percent, of the best cuts with 95 % intervals and by the object's share."""
    lines = []
    for row in rows:
        best = row["best cut"]
        as_it_is = row["as it is"]["all"]["miou"] if row["as it is"] else None
        first, *sizes = ["–" if value is None else f"{value:.1f}" for value in (as_it_is, *best["by_size"])]
        lines.append([row["ranked by"], _pixels(row), first, _with_interval(best["all"]), *sizes])
    return markdown(
        ["pixels ranked by", "size", "cut as it is", "best cut [95 %]", *(_share(*s) for s in SIZES)], lines
    )


def features_table(rows: list[dict]) -> str:
    """Markdown: `measure_features`, a column a level; told apart by the best match, by the mean, and of how many pairs."""

    def cell(level):
        return f"{level['best']:.0f}, {level['mean']:.0f} % of {level['pairs']}" if level["pairs"] else "–"

    lines = [[row["pictures"], _pixels(row), *map(cell, row["levels"])] for row in rows]
    return markdown(["pictures", "size", "fine level", "middle level", "coarse level"], lines)


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        prog="python -m kit.photographs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = "side of the network's squares in pixels (default: the training's; above 512 the squeezed support grows)"
    parser.add_argument("run", nargs="?", default="emoji-photographs", help="trained run (default: emoji-photographs)")
    parser.add_argument("--root", help="folder of COCO; without it, what was measured is printed")
    parser.add_argument("--aspect", default="resize", help="resize or pad (default: resize)")
    parser.add_argument("--size", type=int, help=size)
    parser.add_argument("--features", action="store_true", help="measure what limits the scores instead")
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
                cuts += measure_cuts(segmenter, arguments.root, size)
            write_json(path.with_name("photograph-features.json"), {"rows": rows, "cuts": cuts})
            print(f"{features_table(rows)}\n\n{cuts_table(cuts)}")
            return
        result = measure(segmenter, arguments.root)
        kept = [r for r in results if (r["aspect"], r["size"]) != (result["aspect"], result["size"])]
        results = sorted([*kept, result], key=lambda r: (r["size"], r["aspect"] != "squash"))
        write_json(path, {"results": results})
        print(f"written to {path}")
    elif not results:
        raise FileNotFoundError(f"no {path} yet: measure with --root FOLDER, the folder of COCO")
    print(scores_table(results))
    for result in results:
        print(f"\n{result['aspect']}, {_pixels(result)}:\n{sizes_table(result)}")


if __name__ == "__main__":
    run_program(main)
