"""Fill the paper's tables: train and test every cell that is not done, one after another.

    python -m hsnet.reproduce --dry-run                  all cells, how far they are, what the rest will cost
    python -m hsnet.reproduce pascal --only resnet50     a row of a table; `--only resnet50,0` a single cell
    torchrun --nproc-per-node 4 -m hsnet.reproduce pascal        the same on four GPUs
    python -m hsnet.reproduce pascal --protocol strict   other classes choose the epoch; a table of its own
    python -m hsnet.reproduce claims                     do the paper's claims hold on the embedded benchmark? No GPU needed

A cell is done when its network is trained and tested, with the weights of the best and of the last epoch. What is done
is skipped, what was cut goes on, what another process is training is left to it: the same command may run on several
machines that share the data folder. It ends with status 75 where a scheduler stopped it: start it again.
"""

import argparse
import gc
import sys
from dataclasses import replace

import torch

from ..benchmarks import benchmark_of
from ..config import TEST_LISTS, Config, run_program
from ..devices import choose_device
from ..distributed import from_first, rank, together, world
from ..engine import fit_prototypes, test_run
from ..model import HSNet
from ..runs import WEIGHTS, load_checkpoint, save_model
from ..train import train
from . import claims, report
from .experiments import LAST_EPOCH, OF_PAPER, TABLES, Cell, cells_of, only, state

# What a machine may need to be told; none of it changes what comes out.
MACHINE = ("device", "workers", "micro_batch", "recompute")


def reproduce(cells: list[Cell], machine: dict | None = None) -> list[str]:
    """Train and test the cells that are not done, within `distributed.together` where there are several processes.

    Args:
        machine: settings of `MACHINE` that differ from the defaults.

    Returns:
        What went wrong, a line a cell; the others were done all the same.
    """
    failed: list[str] = []
    for number, cell in enumerate(cells, 1):
        found = from_first(state(cell) if rank() == 0 else None)
        name = f"{number} of {len(cells)}, {cell.row}, fold {cell.config.fold}"
        if found.kind in ("done", "running"):
            _say(f"{name}: {found}" + f" ({found.text})" * bool(found.text))
            continue
        try:
            if found.kind == "other settings":
                raise ValueError(f"{cell.folder} was trained with {found.text}: rename it, or delete it")
            _say(f"{name}: {found}, working in {cell.folder}")
            fill(cell, replace(cell.config, **machine or {}))
            if rank() == 0:  # who has written the files
                print(f"{name}: " + "; ".join(_score(cell, shot) for shot in cell.shots), flush=True)
        except (ValueError, OSError, MemoryError) as error:
            if world() > 1:  # the others wait for this process
                raise
            failed.append(f"{name}: {error}")
            print(f"error: {failed[-1]}", file=sys.stderr)
        gc.collect()
        torch.cuda.empty_cache()
    return failed


def _say(text):
    if rank() == 0:
        print(text, flush=True)


def _score(cell, shot):
    """For example "1-shot 64.0 at the best epoch, 63.1 at the last"."""
    found = [cell.tests(last)[shot]["scores"]["HSNet"]["miou"] for last, _ in cell.kinds[: 2 if cell.last else 1]]
    return f"{shot}-shot mIoU {found[0]:.1f} at the best epoch" + "".join(
        f", {miou:.1f} at the last" for miou in found[1:]
    )


def fill(cell: Cell, config: Config) -> None:
    """Train a cell and test it, best and last epoch, all episodes of each of its shots; what is there is kept.

    Args:
        config: the cell's, with what this machine needs.
    """
    train(config)
    tested = replace(config, benchmark=cell.tested_on, root="") if cell.tested_on else config
    benchmark, device, prototypes = benchmark_of(tested), choose_device(config.device), None
    for last, original_size in cell.kinds:
        there = from_first(list(cell.tests(last, original_size)) if rank() == 0 else None)
        missing = [shot for shot in cell.shots if shot not in there]
        if not missing:
            continue
        folder = cell.folder / LAST_EPOCH if last else cell.folder
        if last:
            if rank() == 0:
                keep_last_epoch(cell)
            from_first(None)  # the others wait for the file
        model = HSNet.from_run(folder).to(device)
        prototypes = prototypes or fit_prototypes(model, tested, benchmark, device)
        for shot in missing:
            test_run(model, tested, benchmark, folder, shot, prototypes, original_size=original_size)
    if rank() == 0:
        claims.measure(cell)
    from_first(None)  # the others wait for it


def keep_last_epoch(cell: Cell) -> None:
    """Write the weights of a run's last epoch beside those of its best, as a run of their own in `last-epoch`.

    Raises:
        FileNotFoundError: the run's state is not there any more.
    """
    folder = cell.folder / LAST_EPOCH
    checkpoint = load_checkpoint(cell.folder)
    if checkpoint is None:
        raise FileNotFoundError(f"{cell.folder} has no state of its last epoch: delete the folder to train it anew")
    folder.mkdir(exist_ok=True)
    model = HSNet.from_run(cell.folder)
    model.load_state_dict(checkpoint["model"], strict=False)
    save_model(folder / WEIGHTS, model)
    Config.load(cell.folder / "config.json").save(folder / "config.json")


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        prog="python -m hsnet.reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", nargs="?", help=f"{', '.join(TABLES)} (default: all of the paper's)")
    parser.add_argument("--dry-run", action="store_true", help="only say how far the cells are and what the rest costs")
    parser.add_argument("--only", default="", metavar="WORDS", help="backbones and folds, such as resnet50,0")
    parser.add_argument(
        "--protocol", default="official", choices=tuple(TEST_LISTS), help="of the episodes (default: official)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, … (default: auto)")
    parser.add_argument("--workers", type=int, default=-1, help="processes that prepare episodes (default: chosen)")
    parser.add_argument(
        "--micro-batch", type=int, default=0, help="compute so many episodes of a batch at a time: less memory"
    )
    parser.add_argument("--recompute", action="store_true", help="less memory still, more time")
    arguments = parser.parse_args()
    names = [arguments.table] if arguments.table else list(OF_PAPER)
    if arguments.dry_run:
        print(report.cells_table(names, arguments.protocol, arguments.only))
        print(f"\n{report.expectation(names)}")
        return
    tables = only({name: cells_of(name, arguments.protocol) for name in names}, arguments.only)
    cells = [cell for cells in tables.values() for cell in cells]
    machine = {name: getattr(arguments, name) for name in MACHINE}
    with together(arguments.device) as device:
        failed = reproduce(cells, machine | {"device": device})
        for name in tables if rank() == 0 else ():
            of_claims = name == "claims"
            made = claims.tables() if of_claims else report.paper_and_ours(name, arguments.protocol)
            print(f"\n{name}\n\n{made}")
    if failed:
        raise SystemExit(2)


if __name__ == "__main__":
    run_program(main)
