"""The paper's numbers beside ours, and how far the experiments are: tables made from files."""

from collections.abc import Iterable

from ..backbone import backbone_row
from ..runs import markdown
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
    disk = "A run takes about 0.1 GB on a disk, with dense kernels 0.5 GB, with a trained backbone 1.8 GB"
    if "claims" in names:
        return f"Hours of two cores that compute in bfloat16; no GPU is needed. {disk}."
    took = ", ".join(
        f"{row['benchmark']} {row['days']} days on {row['gpus']} GPUs ({row['gpu']})" for row in read_paper("training")
    )
    return (
        f"GPU hours: the authors' training until convergence ({took}). The same time is assumed for every backbone and "
        f"ablation. The 100 epochs after the best one are not included; tests take minutes. {disk}. "
        "A training run that several experiments share is counted in the first table that needs it."
    )


def printed(experiment: Experiment, shot: int) -> dict[str, str]:
    """The paper's numbers in an experiment's row: "fold 0" …, "mean", "FB-IoU"; with "?" where unconfirmed."""
    key = (experiment.benchmark, backbone_row(experiment.config.backbone).title, experiment.variant, str(shot))
    return {
        row["what"]: row["value"] + " ?" * (row["sources"] == "unconfirmed")
        for row in read_paper("results")
        if (row["benchmark"], row["backbone"], row["variant"], row["shot"]) == key
    }


def measured(group: list[Experiment], shot: int, last: bool = False, original_size: bool = False) -> dict[str, str]:
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
            ours = {
                f"ours, {'last' if last else 'best'} epoch" + ", original size" * original_size: found
                for last, original_size in group[0].kinds
                if any(found := measured(group, shot, last, original_size))
            }
            left += [] if ours else [f"{row}, {shot}-shot"]
            paper = printed(group[0], shot) if protocol == "official" else {}
            lines = ({"paper": paper} if paper else {}) | ours
            rows += [[row, f"{shot}", what, *(found.get(c) for c in columns)] for what, found in lines.items()]
    some = any(what != "paper" for _, _, what, *_ in rows)
    not_run = f" Not run: {'; '.join(left)}." if some and left else ""
    return f"{markdown(['', 'shot', 'source', *columns], rows)}\n\n{caption(experiments)}{not_run}"


# What must be equal in the tests of one benchmark that stand in one table, and in the trainings behind them.
COMPARABLE = ("protocol", "size", "digest", "rule", "novel_images", "boundary")
CHOSEN = (
    "The best epoch is the one with the highest 1-shot validation mIoU. On PASCAL-5i and COCO-20i the paper validates on "
    "the very episodes that it reports, and so do we under the official protocol: such a best epoch is chosen on the test. "
    "FSS-1000 has validation classes of its own. The last epoch is 100 after the best: the "
    "difference is the gain by choice plus any loss by over-fitting."
)


def caption(experiments: list[Experiment]) -> str:
    """How our numbers came about, of the tests' own files.

    Raises:
        ValueError: tests that cannot be compared, naming what differs.
    """
    kinds: dict[str, set[tuple]] = {}
    for one in experiments:
        for test in (test for kind in one.kinds for test in one.tests(*kind).values()):
            found = test.get("training", {}) | test
            same = {key: found[key] for key in COMPARABLE if key in found} | test.get("source", {})
            kinds.setdefault(one.benchmark, set()).add(tuple(sorted(same.items())))
    for benchmark, found in kinds.items():
        if len(found) > 1:
            raise ValueError(
                f"tests of {benchmark} by different rules, which cannot be in one table: {' and '.join(map(str, sorted(found)))}. Test the "
                "runs again with `python -m hsnet.reproduce`"
            )
    ours = "; ".join(
        f"{benchmark}: " + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in kind if key != "digest")
        for benchmark, (kind,) in kinds.items()
    )
    return "`–`: not reported, or not run; `?`: without a second source. A mean is over all folds. " + (
        f"{CHOSEN} Ours: {ours}." if ours else "Ours: nothing was run yet."
    )
