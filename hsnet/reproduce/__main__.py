"""Train and test the experiments of the paper's tables that are not finished, one after another.

    python -m hsnet.reproduce --dry-run                  all experiments, their state and the cost of the rest
    python -m hsnet.reproduce pascal --only resnet50     a row of a table; `--only resnet50,0` a single experiment
    torchrun --nproc-per-node 4 -m hsnet.reproduce pascal        a whole table on four GPUs
    python -m hsnet.reproduce pascal --protocol strict   the strict protocol, in a table of its own
    python -m hsnet.reproduce claims                     the runs that test the paper's claims on the embedded benchmark; no GPU needed

An experiment is finished when its network is trained and tested, with the weights of the best and of the last epoch. Finished
experiments are skipped, interrupted ones resumed, and those that another process is training left alone: the same command may run
on several machines that share the data folder. Status 75: a scheduler stopped it; start it again.
"""

import gc
from dataclasses import replace

import torch

from ..config import TEST_LISTS, Config, add_settings, command_line, run_program
from ..devices import choose_device
from ..distributed import broadcast, process_group, rank, say
from ..engine import fit_prototypes, test_run
from ..model import HSNet
from ..runs import WEIGHTS, load_checkpoint, save_model
from ..train import train
from . import report
from .experiments import LAST_EPOCH, OF_PAPER, TABLES, Experiment, experiments_of, only, state

# Settings of the machine, which do not change the results.
MACHINE = ("device", "workers", "micro_batch", "recompute")

VERDICTS = "the verdicts are in chapter 13, or `PYTHONPATH=book python -m kit.claims`"


def reproduce(experiments: list[Experiment], machine: dict | None = None) -> None:
    """Train and test the experiments that are not done, within `distributed.process_group` where there are several processes.

    Args:
        machine: settings of `MACHINE` that differ from the defaults.

    Raises:
        ValueError: before anything is trained, folders that hold runs of other settings; and as `train` and tests do.
    """
    states = broadcast([state(one) for one in experiments] if rank() == 0 else None)
    if other := [
        f"{e.folder} ({s.text})" for e, s in zip(experiments, states, strict=True) if s.kind == "other settings"
    ]:
        raise ValueError(f"trained with other settings: {', '.join(other)}. Rename or delete these folders")
    for number, one in enumerate(experiments, 1):
        found = broadcast(state(one) if rank() == 0 else None)
        name = f"{number} of {len(experiments)}, {one.row}, fold {one.config.fold}"
        if found.kind in ("done", "running"):
            say(f"{name}: {found}" + f" ({found.text})" * bool(found.text))
            continue
        say(f"{name}: {found}, working in {one.folder}")
        fill(one, replace(one.config, **machine or {}))
        say(f"{name}: done")
        gc.collect()
        torch.cuda.empty_cache()


def fill(experiment: Experiment, config: Config) -> None:
    """Train an experiment and test it, best and last epoch, all episodes of each of its shots; what is there is kept.

    Args:
        config: the experiment's, with what this machine needs.
    """
    train(config)
    tested = replace(config, benchmark=experiment.tested_on, root="") if experiment.tested_on else config
    benchmark, device, prototypes = tested.load_benchmark(), choose_device(config.device), None
    for last, original_size in experiment.kinds:
        there = broadcast(list(experiment.tests(last, original_size)) if rank() == 0 else None)
        missing = [shot for shot in experiment.shots if shot not in there]
        if not missing:
            continue
        folder = experiment.folder / LAST_EPOCH if last else experiment.folder
        if last:
            if rank() == 0:
                keep_last_epoch(experiment)
            broadcast(None)  # the others wait for the file
        model = HSNet.from_run(folder).to(device)
        prototypes = prototypes or fit_prototypes(model, tested, benchmark, device)
        for shot in missing:
            test_run(model, tested, benchmark, folder, shot, prototypes, original_size=original_size)
    broadcast(None)  # the others wait for the files


def keep_last_epoch(experiment: Experiment) -> None:
    """Write the weights of a run's last epoch beside those of its best, as a run of their own in `last-epoch`.

    Raises:
        FileNotFoundError: the run's state is not there any more.
    """
    run, folder = experiment.folder, experiment.folder / LAST_EPOCH
    checkpoint = load_checkpoint(run)
    if checkpoint is None:
        raise FileNotFoundError(f"{run} has no state of its last epoch: delete the folder to train it anew")
    folder.mkdir(exist_ok=True)
    model = HSNet.from_run(run)
    model.load_state_dict(checkpoint["model"], strict=False)
    save_model(folder / WEIGHTS, model)
    Config.load(run / "config.json").save(folder / "config.json")


def main() -> None:
    """The program."""
    parser = command_line("reproduce", __doc__)
    option = parser.add_argument
    option("table", nargs="?", help=f"{', '.join(TABLES)} (default: all of the paper's)")
    option("--dry-run", action="store_true", help="print the state of the experiments and the cost of the rest")
    option("--only", default="", metavar="WORDS", help="backbones and folds, such as resnet50,0")
    option("--protocol", default="official", choices=tuple(TEST_LISTS), help="of training and test (default: official)")
    add_settings(parser, MACHINE)
    arguments = parser.parse_args()
    names = [arguments.table] if arguments.table else list(OF_PAPER)
    if arguments.dry_run:
        print(f"{report.experiments_table(names, arguments.protocol, arguments.only)}\n\n{report.expectation(names)}")
        return
    tables = only({name: experiments_of(name, arguments.protocol) for name in names}, arguments.only)
    machine = {name: value for name in MACHINE if (value := getattr(arguments, name)) is not None}
    with process_group(arguments.device or "auto") as device:
        reproduce([one for experiments in tables.values() for one in experiments], machine | {"device": device})
        for name in tables if rank() == 0 else ():
            print(f"\n{name}\n\n{VERDICTS if name == 'claims' else report.paper_and_ours(name, arguments.protocol)}")


if __name__ == "__main__":
    run_program(main)
