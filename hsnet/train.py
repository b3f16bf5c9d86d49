"""Train HSNet, validate it after each epoch, and test it.

    python -m hsnet.train                                     the embedded benchmark
    python -m hsnet.train --benchmark shapes --epochs 5       figures drawn by code; needs no download
    python -m hsnet.train --benchmark folder --root DIR       your own images and masks
    torchrun --nproc-per-node 4 -m hsnet.train …              four processes, on GPUs where available
    python -m hsnet.train --list                              the runs, their progress and their best scores

The same command resumes a run that Ctrl-C or a scheduler ended, at the next step; after a power failure, at the last checkpoint.
Exit status: 0 when the run is complete, 130 after Ctrl-C, 75 after SIGTERM (saved, start it again), 2 after an error.

A run is a folder, data/runs/NAME: config.json, history.jsonl (a line an epoch), model.safetensors (the best epoch),
last.pt (for resuming), test-1shot.json, episodes.png. config.json stores every option below.
"""

import dataclasses
import json
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from . import figures, runs
from .benchmarks import BENCHMARKS
from .config import FREE, Config, add_settings, command_line, config_from, run_program
from .devices import Memory, choose_device
from .distributed import broadcast, process_group, rank, say, world
from .engine import Learner, Predictor, fit_prototypes, predictor, test_run
from .episodes import Batch, EpisodeDataset, test_episodes
from .memory import explained
from .optim import Clock
from .paths import data_folder
from .runs import LAST, WEIGHTS
from .thresholds import choose_thresholds

# Within an epoch the state is saved every so many seconds, and more rarely where saving takes over 1 % of that.
SAVE_EVERY, SAVE_SHARE = 30.0, 0.01
RESUME_ME = 75  # exit status after SIGTERM: "temporary failure" of sysexits.h
LONGER = ("epochs", "minutes", "patience")  # may differ between sittings, beside FREE, where --resume asks for it


def train(config: Config, resume: bool = False) -> Path:
    """Train, test and draw; see the module's docstring for what is written.

    A stopped run is resumed; a finished one is left as it is.

    Args:
        resume: there must be something to go on with; then more epochs or minutes may be asked for.

    Returns:
        The run's folder.

    Raises:
        FileExistsError: another process trains this run.
        FileNotFoundError: nothing to resume, or missing data.
        ValueError: a wrong setting, or one that differs from the run's; a loss that is not finite or exploded.
        MemoryError: too little memory, naming what was needed and what needs less.
        OSError: a folder that cannot be written, a full disk, or (several processes) another one that ended.
        KeyboardInterrupt: after Ctrl-C; SystemExit(75) after SIGTERM. All is saved.
    """
    if trained_as := BENCHMARKS[config.benchmark].trained_as:
        raise ValueError(
            f"benchmark is {config.benchmark}, which is only for tests: train on {trained_as}, then "
            f"`python -m hsnet.evaluate RUN --benchmark {config.benchmark}`"
        )
    with process_group(config.device) as name, ExitStack() as stack:
        folder = data_folder() / "runs" / config.run
        if rank() == 0:
            stack.enter_context(_existing(folder))
            stack.enter_context(runs.lock(folder))
        state = broadcast(_find_state(config, folder, resume) if rank() == 0 else None)
        here = dataclasses.replace(config, device=name)
        if state is not None and state["finished"]:
            say(f"{config.run} is finished. Start another run with --name, or train longer with --resume --epochs N")
            say(runs.scores_table(runs.read_tests(folder)))
            return folder
        device = choose_device(name)
        peak = Memory(device)
        stack.enter_context(explained(here, device, folder / LAST))
        interruption = stack.enter_context(Interruption(folder))
        with interruption.immediate():
            training = Training(here, folder, state)
            del state  # its tensors have been copied
        if rank() == 0:  # not before: what fails until here leaves the settings of an earlier run as they were
            runs.write_json(folder / "config.json", dataclasses.asdict(config))
            training.write_history()
        try:
            while training.goes_on():
                training.learner.train_one_epoch(training.clock, lambda: interruption.number > 0, training.save_if_due)
                with interruption.immediate():
                    miou = training.learner.validate()
                training.end_epoch(miou, peak.peak())
        except KeyboardInterrupt:
            if not interruption.twice:  # the second signal may have come within a step, whose state is of no use
                training.save()
            raise
        training.save()
        with interruption.immediate():
            training.test()
    return folder


class Interruption:
    """Ctrl-C and SIGTERM let a training step end and the state be saved. The second one ends at once.

    Attributes:
        number: the signal that came, or 0.
        at_once: raise on the first one already: set where nothing has to be brought to an end.
        twice: whether a second one has come.
    """

    AGAIN = 3.0  # seconds; sooner, it is the same one: torchrun and Slurm hand on what a process has got already

    def __init__(self, folder: Path):
        self.folder, self.number, self.at_once, self.twice = folder, 0, False, False
        self._when, self._before = 0.0, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # a shell or `nohup` wants it ignored
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind, *_):
        for number, handler in self._before.items():
            # torchrun terminates the others as soon as one process has ended: this one is ending, and first says why.
            ending = kind is ConnectionError and number == signal.SIGTERM
            signal.signal(number, signal.SIG_IGN if ending else handler)
        if kind is KeyboardInterrupt:
            saved = f"saved in {self.folder}: the same command resumes it"
            say(f"\nstopped, {saved if (self.folder / LAST).exists() else 'nothing to save yet'}")
            if self.number == signal.SIGTERM:
                raise SystemExit(RESUME_ME) from None

    def _note(self, number, _):
        again, now = self.number, time.monotonic()
        if again and now - self._when < self.AGAIN:
            return
        self.number, self._when, self.twice = number, now, bool(again)
        if again or self.at_once:
            raise KeyboardInterrupt
        print("\nsaving the state, then stopping; press Ctrl-C again to stop at once", file=sys.stderr, flush=True)

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Within, the first signal raises KeyboardInterrupt; so does one that came before."""
        self.at_once = True
        if self.number:
            raise KeyboardInterrupt
        try:
            yield
        finally:
            self.at_once = False


class Training:
    """A training under way: a `Learner`, its run's folder, and what its epochs have brought.

    Attributes:
        history: the lines of `history.jsonl`.
        best: highest validation mIoU, of epoch `best_epoch` with the weights `best_model`.
    """

    def __init__(self, config: Config, folder: Path, state: dict[str, Any] | None = None):
        self.config, self.folder = config, folder
        self.learner = learner = Learner(config)
        self.best, self.best_epoch = -1.0, 0
        self.history: list[dict] = []
        self.best_model: dict[str, Tensor] = {}
        self.clock = Clock(config, 0.0 if state is None else state["seconds"])
        self._written = 0  # the epoch whose weights `model.safetensors` holds
        self._saved, self._cost = time.perf_counter(), 0.0
        parameters = sum(p.numel() for p in learner.learned.values())
        several = f", {world()} processes" * (world() > 1)
        say(f"{folder.name}: {parameters:,} parameters to learn, {learner.device}{several}, {str(learner.dtype)[6:]}")
        if state is not None:
            learner.load_state(state)
            for name in ("history", "best", "best_epoch", "best_model"):
                setattr(self, name, state[name])
            step = f", step {learner.step}" if learner.step else ""
            say(f"resuming after epoch {learner.epoch}{step}, {self.clock.seconds():.0f} s")
        elif config.start:
            _start_from(config.start, learner.model)

    def goes_on(self) -> bool:
        """Whether there is an epoch to begin, or to end: one that was begun is always validated."""
        config, epoch = self.config, self.learner.epoch
        if self.learner.step or not self.best_epoch:
            return True
        if config.patience and epoch - self.best_epoch >= config.patience:
            say(f"stopped: no better epoch in the last {config.patience} (--patience)")
            return False
        return epoch < config.epochs and broadcast(self.clock.progress(epoch)) < 1

    def end_epoch(self, miou: float, peak_bytes: int) -> None:
        """Keep the weights if they are the best, add a line of history, save if it is due.

        Args:
            miou: on the validation episodes.
        """
        learner, seconds = self.learner, self.clock.seconds()
        loss = learner.losses / max(1, learner.step)
        train_miou = learner.score.miou() if learner.step else 0.0
        learner.end_epoch()
        best = miou >= self.best  # of equal epochs the later one has seen more
        if best:
            self.best, self.best_epoch = miou, learner.epoch
            self.best_model = {n: p.detach().cpu().clone() for n, p in learner.learned.items()}
        line = {"epoch": learner.epoch, "loss": round(loss, 5), "train_miou": round(train_miou, 3)}
        line |= {"val_miou": round(miou, 3), "best": best, "seconds": round(seconds, 1), "peak_bytes": peak_bytes}
        self.history.append(line)
        self.save_if_due()
        if rank() == 0:
            with (self.folder / "history.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        mark = "   best so far" if best else ""
        say(f"epoch {learner.epoch:3d}   loss {loss:.4f}   validation mIoU {miou:5.1f}   {seconds:.0f} s{mark}")

    def test(self) -> None:
        """Score the best epoch and draw; then the run is finished."""
        config, learner = self.config, self.learner
        model, benchmark, device = learner.model, learner.benchmark, learner.device
        last = {n: p.detach().clone() for n, p in learner.learned.items()}
        model.load_state_dict(self.best_model, strict=False)
        prototypes = fit_prototypes(model.eval(), config, benchmark, device)
        if config.rule == "mean":
            self._written = 0
            model.zoom = True
            model.prior, model.thresholds = choose_thresholds(model, config, benchmark, device)
            say("thresholds {} with one support, {} with several".format(*model.thresholds) + f"; prior {model.prior}")
        # An episode costs its K + 1 pictures: fewer of many shots, for about equal times. `hsnet.evaluate` scores them all.
        counts = {shot: max(1, 2 * config.test_episodes // (shot + 1)) for shot in config.shots}
        results = [test_run(model, config, benchmark, self.folder, k, prototypes, n) for k, n in counts.items()]
        picture = self.folder / "episodes.png"
        if rank() == 0:
            episodes = test_episodes(benchmark, fold=config.fold, shot=1, count=8)
            drawn = draw_episodes(predictor(model, device), EpisodeDataset(benchmark, config.size, episodes))
            drawn.savefig(picture, dpi=80)
            plt.close(drawn)
        model.load_state_dict(last, strict=False)
        self.save(finished=True)
        say(runs.scores_table(results))
        say(f"run      {self.folder}\npicture  {picture}")

    def save(self, finished: bool = False) -> None:
        """Write the checkpoint, and the best epoch's weights (the first of several processes does).

        Raises:
            OSError: it cannot be written; the one before is still there.
        """
        if rank() > 0:
            return
        start = time.perf_counter()
        state = {
            "config": dataclasses.asdict(self.config),
            **self.learner.state(),
            "seconds": self.clock.seconds(),
            "history": self.history,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_model": self.best_model,
            "finished": finished,
        }
        runs.save_checkpoint(self.folder, state)
        self._save_best()
        self._saved = time.perf_counter()
        self._cost = self._saved - start

    def write_history(self) -> None:
        """Write the files that follow from the state: a kill may have left them ahead or behind."""
        self._save_best()
        lines = "".join(json.dumps(line) + "\n" for line in self.history)
        runs.write_atomically(self.folder / "history.jsonl", lines.encode())

    def save_if_due(self) -> None:
        """Save, unless that was done a short time ago."""
        if time.perf_counter() - self._saved >= max(SAVE_EVERY, self._cost / SAVE_SHARE):
            self.save()

    def _save_best(self):
        if self._written != self.best_epoch:
            runs.save_model(self.folder / WEIGHTS, self.learner.model, self.best_model)
            self._written = self.best_epoch


def draw_episodes(predict: Predictor, dataset: EpisodeDataset, count: int = 8) -> plt.Figure:
    """Draw the first episodes of a data set with HSNet's predictions."""
    batches = [dataset[i] for i in range(min(count, len(dataset)))]
    prediction = torch.cat([predict(batch)["HSNet"] for batch in batches])  # one by one: no more memory than training
    batch = Batch.stack(batches)
    names = [dataset.benchmark.class_names[c] for c in batch.class_id.tolist()]
    return figures.episode_figure(batch, prediction.numpy(), names, dataset.benchmark.attribution)


def _start_from(run, model):
    """Load a run's weights into a model."""
    try:
        runs.load_weights(model, runs.weights_of(run))
    except (OSError, ValueError) as error:
        kind = ValueError if isinstance(error, ValueError) else FileNotFoundError
        raise kind(f"start is {run!r}: {error}") from error


@contextmanager
def _existing(folder):
    """The run's folder; it goes again if it is empty, after a training that could not begin."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionError(
            f"{folder} cannot be written ({error.strerror}): set HSNET_DATA to another folder, or correct the permissions"
        ) from error
    try:
        yield
    finally:
        with suppress(OSError):
            folder.rmdir()


def _find_state(config, folder, resume):
    """The state to go on from, or None for a new run."""
    state = runs.load_checkpoint(folder)
    if state is None:
        if resume:
            raise FileNotFoundError(f"nothing to resume: {folder} has no {LAST}. Start the run without --resume")
        return None
    before = state.get("config")
    if before is None:
        raise ValueError(f"{folder / LAST} was written by an older version: give a new --name, or delete the folder")
    before = vars(Config()) | before  # an older version had fewer settings
    free = set(FREE + (LONGER if resume else ()))
    if BENCHMARKS[config.benchmark].options:  # the folders decide what is learned
        free -= {"root", "test_root"}
    other = [f"{k} {before[k]!r}, now {v!r}" for k, v in vars(config).items() if k not in free and before[k] != v]
    if other:
        longer = "" if resume else f" With --resume, {', '.join(LONGER)} may differ"
        raise ValueError(
            f"the run {config.run} was started with {'; '.join(other)}. Give the same settings, or a new --name.{longer}"
        )
    state["finished"] &= all(before[name] == getattr(config, name) for name in LONGER)
    return state


def main() -> None:
    """The program."""
    parser = command_line("train", __doc__)
    add_settings(parser)
    option = partial(parser.add_argument, action="store_true")
    option("--resume", help="resume an existing run, also with more --epochs or --minutes")
    option("--list", help="list the runs, their progress and their best scores")
    arguments = parser.parse_args()
    if arguments.list:
        print(runs.runs_table())
        return
    try:
        train(config_from(arguments), arguments.resume)
    except KeyboardInterrupt:  # `train` has said what is saved
        raise SystemExit(128 + signal.SIGINT) from None


if __name__ == "__main__":
    run_program(main)
