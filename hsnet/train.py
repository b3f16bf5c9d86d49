"""Train HSNet, end to end: episodes, network, validation, test, a folder with everything.

    python -m hsnet.train                                     the embedded benchmark, on whatever machine this is
    python -m hsnet.train --benchmark shapes --epochs 5       drawn by code: nothing is fetched
    python -m hsnet.train --benchmark coco --root DIR         photographs: COCO's annotations and images under DIR
    torchrun --nproc-per-node 4 -m hsnet.train …              four processes, a GPU each where there are GPUs
    python -m hsnet.train --list                              the runs, how far they are, their best score

The same command again goes on where Ctrl-C, a scheduler or a power cut ended the run, at the very step. It ends with
status 0 when all is done, 130 after Ctrl-C and 75 after SIGTERM (saved, start it again), 2 after an error.

A run is a folder, data/runs/NAME: config.json, history.jsonl (a line an epoch), model.safetensors (the best epoch),
last.pt and previous.pt (to go on), test-1shot.json, episodes.png. Every setting below is stored with it.
"""

import argparse
import dataclasses
import gc
import json
import math
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from . import figures, fits, runs
from .benchmarks import benchmark_of
from .config import FREE, Config, add_settings, config_from, data_folder, run_program
from .devices import Memory, choose_device, choose_precision, free_memory, is_out_of_memory
from .distributed import all_gather, all_reduce, all_reduce_gradients, broadcast, part_of, process_group, rank, world
from .engine import (
    choose_workers,
    draw_episodes,
    episodes_at_a_time,
    evaluate,
    fit_prototypes,
    predictor,
    test_run,
)
from .episodes import Batch, EpisodeDataset, require_readable, test_episodes
from .metrics import SegmentationScore
from .model import HSNet
from .optim import Muon
from .reference import BACKBONE
from .runs import (
    LAST,
    WEIGHTS,
    load_checkpoint,
    load_weights,
    lock,
    lock_holder,
    save_checkpoint,
    save_model,
    weights_of,
    write_whole,
)

# Episodes at a time on a CPU: so many that the finest level's first 16 channels, (side / 8)² · (side / 32)² positions in
# float32, take at most 32 MB. More than that the C library takes from the system, and gives back, with every tensor.
FEW = 2**35
BIAS_LEARNING_RATE = 1e-3  # of Adam, for what Muon does not move
BACKBONE_LEARNING_RATE = 1e-4  # of Adam beside Muon, for a backbone that is trained too: it starts from good values
IGNORED = -100  # the truth of pixels that do not count in the loss
# Within an epoch the state is saved every so many seconds, and more rarely where saving takes over 1 % of that.
SAVE_EVERY, SAVE_SHARE = 30.0, 0.01
# A mean cross-entropy above this has exploded: an untrained network has 0.7, one that is sure and wrong everywhere 20.
EXPLODED = 20.0
MEASURED = ("seconds", "peak_bytes")  # of a line of history: what differs between two runs that are otherwise equal
RESUME_ME = 75  # exit status after SIGTERM: "temporary failure" of sysexits.h
LONGER = (
    "epochs",
    "minutes",
    "patience",
)  # may differ between the sittings of a run, beside FREE, where --resume asks for it


def train(config: Config, resume: bool = False, memory: bool = False) -> Path:
    """Train, test and draw; see the module's docstring for what is written.

    A run that was stopped goes on where it was; one that is finished is left as it is.

    Args:
        resume: there must be something to go on with; then more epochs or minutes may be asked for.
        memory: print an estimate of the memory at the beginning, and the measured peak at the end.

    Returns:
        The run's folder.

    Raises:
        FileExistsError: another process trains this run.
        FileNotFoundError: nothing to resume, or missing data.
        ValueError: a setting that does not fit, or differs from the run's; a loss that is not finite or exploded.
        MemoryError: too little memory, naming the setting that fits.
        OSError: a folder that cannot be written, a full disk, or (several processes) another one that ended.
        KeyboardInterrupt: after Ctrl-C; SystemExit(75) after SIGTERM. All is saved.
    """
    if config.benchmark == "coco-to-pascal":
        raise ValueError(
            "benchmark is coco-to-pascal, which only tests: train on coco, then "
            "`python -m hsnet.evaluate RUN --benchmark coco-to-pascal`"
        )
    with process_group(config.device) as device, ExitStack() as stack:
        folder = data_folder() / "runs" / config.run
        if rank() == 0:
            _make(folder)
            stack.callback(_remove_if_empty, folder)  # after a training that could not begin
            stack.enter_context(lock(folder))
        state = broadcast(_find_state(config, folder, resume) if rank() == 0 else None)
        here = dataclasses.replace(config, device=device)
        if state is not None and state["finished"]:
            _say(
                f"{config.run} is finished: nothing to do. Train another with --name, or longer with --resume --epochs N"
            )
            _say(runs.scores_table(runs.read_tests(folder)))
            return folder
        interruption, trouble = stack.enter_context(Interruption()), None
        try:
            try:
                with interruption.immediate():
                    training = Training(here, folder, interruption, state)
                    state = None  # its tensors have been copied
                    if memory:
                        _say(_foresee(training))
                        peak = Memory(training.device)
                if rank() == 0:  # not before: what fails until here leaves the settings of an earlier run as they were
                    write_whole(folder / "config.json", config.as_json().encode())
                _run_epochs(training)
                _test(training)
            except (RuntimeError, MemoryError, OSError) as error:
                if isinstance(error, NoRoomError) or not is_out_of_memory(error):
                    raise
                trouble = error.with_traceback(None)
            if trouble:  # out of the except: its traceback held the tensors of the attempt
                training = None
                raise NoRoomError(_what_fits(here, folder, interruption)) from trouble
        except KeyboardInterrupt:
            saved = (
                f"saved in {folder}: the same command goes on" if (folder / LAST).exists() else "nothing to save yet"
            )
            _say(f"\nstopped, {saved}")
            if interruption.number == signal.SIGTERM:
                raise SystemExit(RESUME_ME) from None
            raise
        if memory:
            (mean,) = all_reduce([peak.peak() / world()], training.device)
            _say(f"memory   {mean / 1e9:.2f} GB at its peak, measured" + " (mean of the processes)" * (world() > 1))
    return folder


class NoRoomError(MemoryError):
    """Too little memory, with the setting that fits."""


class Interruption:
    """Ctrl-C and SIGTERM let a training step end and the state be saved. The second one ends at once.

    Attributes:
        number: the signal that came, or 0.
        at_once: raise on the first one already: set where nothing has to be brought to an end.
    """

    AGAIN = 3.0  # seconds; sooner, it is the same one: torchrun and Slurm hand on what a process has got already

    def __init__(self):
        self.number, self.at_once, self._when, self._before = 0, False, 0.0, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if signal.getsignal(number) is not signal.SIG_IGN:  # a shell or `nohup` wants it ignored
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        again, now = self.number, time.monotonic()
        if again and now - self._when < self.AGAIN:
            return
        self.number, self._when = number, now
        if again or self.at_once:
            raise KeyboardInterrupt
        print("\nstopping after this step; once more to stop at once", file=sys.stderr, flush=True)

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
    """A training under way: what it needs, what a checkpoint holds of it, and the step that changes both.

    Attributes:
        epoch, step: whole epochs and steps of the running epoch that are done.
        losses: their sum over the running epoch; score, its areas.
        history: the lines of `history.jsonl`.
        best: highest validation mIoU, of epoch `best_epoch` with the weights `best_model`.
    """

    def __init__(self, config: Config, folder: Path, interruption: Interruption, state: dict[str, Any] | None):
        torch.manual_seed(config.seed)
        self.config, self.folder, self.interruption = config, folder, interruption
        self.device = choose_device(config.device)
        self.dtype = choose_precision(config.precision, self.device)
        self.benchmark = benchmark_of(config)
        for split, tolerated in (("train", config.bad_files), ("val", 0), ("test", 0)):
            self.benchmark.check(config.fold, split, tolerated)
        self.workers = choose_workers(config.workers)
        self.model = HSNet(**config.model_settings).to(self.device)
        if config.start and state is None:
            _start_from(config.start, self.model)
        self.model.training_size = config.size
        self.model.encoder.recompute = config.recompute
        self.learned = self.model.learned_parameters()
        self.optimizers = make_optimizers(config, self.learned)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.weight = torch.tensor([1.0, config.foreground_weight], device=self.device)
        count = config.epoch_episodes or self.benchmark.training_queries(config.fold)
        self.dataset = EpisodeDataset(
            self.benchmark, config.size, fold=config.fold, count=count, seed=config.seed, bad_files=config.bad_files
        )
        val_list = test_episodes(self.benchmark, fold=config.fold, shot=1, count=config.val_episodes, split="val")
        self.validation = EpisodeDataset(self.benchmark, config.size, val_list)
        require_readable(self.validation, max(1, self.workers))
        self.score = SegmentationScore(self.benchmark.classes(config.fold, "train"))
        self.epoch = self.step = self.best_epoch = 0
        self.losses, self.best, self.saving = 0.0, -1.0, 0.0
        self.history: list[dict] = []
        self.best_model: dict[str, Tensor] = {}
        self._written = 0  # the epoch whose weights `model.safetensors` holds
        self.clock = Clock(config, count, 0.0 if state is None else state["seconds"])
        self._saved, self._cost = time.perf_counter(), 0.0
        parameters = sum(p.numel() for p in self.learned.values())
        several = f", {world()} processes" * (world() > 1)
        _say(f"{folder.name}: {parameters:,} parameters to learn, {self.device}{several}, {str(self.dtype)[6:]}")
        if state is not None:
            self._restore(state)
        self.board = Board(self) if config.tensorboard and rank() == 0 else None

    def state(self, finished: bool = False) -> dict[str, Any]:
        """Everything that a process needs to go on as this one would."""
        numpy_name, numpy_keys, *numpy_rest = np.random.get_state()
        return {
            "config": dataclasses.asdict(self.config),
            "model": {n: p.detach() for n, p in self.learned.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "losses": self.losses,
            "areas": self.score.rows,
            "seconds": self.clock.seconds(),
            "saving": self.saving,
            "history": self.history,
            "best": self.best,
            "best_epoch": self.best_epoch,
            "best_model": self.best_model,
            # Nothing here draws from these (see EpisodeDataset); what is built on top may.
            "generators": {
                "python": random.getstate(),
                "numpy": [numpy_name, torch.from_numpy(numpy_keys.astype(np.int64)), *numpy_rest],
                "torch": torch.get_rng_state(),
                "cuda": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
            },
            "passed_over": list(self.dataset.passed_over),
            "finished": finished,
        }

    def _restore(self, state):
        for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(stored)
        self.scaler.load_state_dict(state["scaler"])
        for name in ("epoch", "step", "losses", "saving", "history", "best", "best_epoch", "best_model"):
            setattr(self, name, state[name])
        self.score.extend(state["areas"])
        self.dataset.passed_over = dict.fromkeys(state["passed_over"])
        self.model.load_state_dict(state["model"], strict=False)
        generators = state["generators"]
        random.setstate(generators["python"])
        name, keys, *rest = generators["numpy"]
        np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
        torch.set_rng_state(generators["torch"])
        if len(generators["cuda"]) == (torch.cuda.device_count() if self.device.type == "cuda" else 0):
            torch.cuda.set_rng_state_all(generators["cuda"])
        steps = f", step {self.step}" if self.step else ""
        _say(f"going on after epoch {self.epoch}{steps}, {self.clock.seconds():.0f} s")

    def save(self, finished: bool = False) -> None:
        """Write the checkpoint, and the best epoch's weights (the first of several processes does).

        Raises:
            OSError: it cannot be written; the one before is still there.
        """
        if rank() > 0:
            return
        start = time.perf_counter()
        save_checkpoint(self.folder, self.state(finished))
        self.save_best()
        self._saved = time.perf_counter()
        self._cost = self._saved - start
        self.saving += self._cost

    def save_best(self) -> None:
        """Write the best epoch's weights, unless they have been written."""
        if self._written != self.best_epoch:
            save_model(self.folder / WEIGHTS, self.model, self.best_model)
            self._written = self.best_epoch

    def save_if_due(self) -> None:
        """Save, unless that was done a short time ago."""
        if time.perf_counter() - self._saved >= max(SAVE_EVERY, self._cost / SAVE_SHARE):
            self.save()

    def learn(self, batch: Batch | None, whole: float, progress: float) -> None:
        """One step of the optimizers, with the gradients of all processes.

        Args:
            batch: this process's part of the step's episodes; None where it has none.
            whole: the sum of the pixel weights of all parts.
            progress: of the training, 0 to 1; decides the learning rate.
        """
        for optimizer_group in (g for optimizer in self.optimizers for g in optimizer.param_groups):
            optimizer_group["lr"] = self.clock.schedule(progress) * optimizer_group["initial_lr"]
        self.model.zero_grad()
        loss, score = torch.zeros((), device=self.device), SegmentationScore(self.score.class_ids)
        if batch is not None:
            batch = batch.to(self.device)
            loss, masks = self.gradients(batch, whole, self.config.micro_batch)
            score.update(masks, batch.query_mask, batch.class_id, batch.ignored)
        all_reduce_gradients(self.learned.values())
        self.score.extend(all_gather(score.rows))
        self.score.condense(beyond=1000 + len(self.score.class_ids))
        (loss,) = all_reduce([loss.item()], self.device)
        self._check(loss, batch)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        self.losses += loss
        self.step += 1

    def gradients(self, batch: Batch, whole: float, few: int) -> tuple[Float[Tensor, ""], Bool[Tensor, "b h w"]]:
        """`backward` of a batch on the device; see there for `whole` and `few`."""
        query, support = (self.model.backbone.normalize(x) for x in (batch.query, batch.support[:, 0]))
        inputs = self.model, query, support, batch.support_mask[:, 0], batch.query_mask, self.weight, self.dtype
        return backward(*inputs, few=few, ignored=self._ignored(batch), whole=whole, scale=self.scaler.scale)

    def pixels(self, batch: Batch) -> float:
        """`pixel_weight` of a batch that the loader has just given."""
        return pixel_weight(batch.query_mask, self._ignored(batch), self.weight.cpu())

    def _ignored(self, batch):
        return batch.ignored if self.config.boundary == "ignore" else None

    def _check(self, loss, batch):
        """Stop before a step that would spoil the weights, and name the episodes it comes from."""
        gradients = [p.grad for p in self.learned.values() if p.grad is not None]
        # A scaled loss is meant to overflow now and then: the scaler leaves that step out.
        finite = self.scaler.is_enabled() or bool(torch.nn.utils.get_total_norm(gradients).isfinite())
        if abs(loss) <= EXPLODED and finite:
            return
        what = f"the loss is {loss:.4g}" if not abs(loss) <= EXPLODED else "a gradient is not finite"
        begin = self.step * self.config.batch
        begin += part_of(min(self.config.batch, self.dataset.count - begin), rank(), world())[0]
        suspects = []
        for i in range(0 if batch is None else len(batch.query)):
            one = Batch(**{f.name: getattr(batch, f.name)[i : i + 1] for f in dataclasses.fields(Batch)})
            self.model.zero_grad()
            whole = pixel_weight(one.query_mask, self._ignored(one), self.weight)
            alone = self.gradients(one, whole, 1)[0].item()
            sound = all(bool(p.grad.isfinite().all()) for p in self.learned.values() if p.grad is not None)
            wrong = not sound or not math.isfinite(alone)
            suspects.append((wrong, alone, self.dataset.episode(begin + i), begin + i))
        worst = [s for s in suspects if s[0]] or sorted(suspects, key=lambda s: -s[1])[:1]
        named = [
            f"{index} (query {episode.query!r}, support {episode.supports[0]!r}, loss {alone:.4g})"
            for _, alone, episode, index in worst
        ]
        raise ValueError(
            f"{what} in epoch {self.epoch + 1}, step {self.step + 1}: training stops before it spoils the weights. "
            f"The worst of its episodes: {', '.join(named) or 'in another process'}. The last checkpoint is from before. "
            f"Look at that episode, or train another run with a --learning-rate below {self.config.learning_rate}"
        )


def _run_epochs(training: Training) -> None:
    """All epochs that are left: training, validation, checkpoint, a line of history."""
    clock = training.clock
    history, memory = training.folder / "history.jsonl", Memory(training.device)
    if rank() == 0:  # what follows from the state: a kill may have left it ahead or behind
        training.save_best()
        write_whole(history, "".join(json.dumps(line) + "\n" for line in training.history).encode())
    while _goes_on(training):
        train_one_epoch(training)
        miou = _validate(training)
        loss = training.losses / max(1, training.step)
        best = miou >= training.best  # of equal epochs the later one has seen more
        training.epoch += 1
        if best:
            training.best, training.best_epoch = miou, training.epoch
            training.best_model = {n: p.detach().cpu().clone() for n, p in training.learned.items()}
        line = {
            "epoch": training.epoch,
            "loss": round(loss, 5),
            "train_miou": round(training.score.miou(), 3) if training.step else 0.0,
            "val_miou": round(miou, 3),
            "best": best,
            "seconds": round(clock.seconds(), 1),
            "peak_bytes": memory.peak(),
        }
        training.history.append(line)
        training.step, training.losses = 0, 0.0
        training.score.reset()
        training.save_if_due()
        if rank() == 0:
            with history.open("a") as file:
                file.write(json.dumps(line) + "\n")
        if training.board:
            training.board.epoch(line)
        mark = "   best so far" if best else ""
        _say(
            f"epoch {training.epoch:3d}   loss {loss:.4f}   validation mIoU {miou:5.1f}   {clock.seconds():.0f} s{mark}"
        )
    training.save()
    _say(f"checkpoints took {100 * training.saving / clock.seconds():.2f} % of the time")


def _goes_on(training):
    """Whether there is an epoch to begin, or to end: one that was begun is always validated."""
    config, epoch = training.config, training.epoch
    if training.step or not training.best_epoch:
        return True
    if config.patience and epoch - training.best_epoch >= config.patience:
        _say(f"no better epoch in {config.patience}: stopped, as --patience asks")
        return False
    return epoch < config.epochs and broadcast(training.clock.progress(epoch)) < 1


def train_one_epoch(training: Training) -> None:
    """What is left of the running epoch's steps; checkpoints on the way."""
    config, clock = training.config, training.clock
    training.model.train()
    training.dataset.epoch = training.epoch
    loader = training.dataset.loader(config.batch, training.workers, first=training.step, share=(rank(), world()))
    begun, steps, start = training.step, training.step + len(loader), time.perf_counter()
    title = f"epoch {training.epoch + 1}"
    with tqdm(total=steps, initial=begun, desc=title, unit="step", leave=False, disable=rank() > 0) as bar:
        for batch in loader:
            # What all processes must agree on before a step, in one message.
            whole, seconds, stop = all_reduce(
                [
                    0.0 if batch is None else training.pixels(batch),
                    clock.seconds() if rank() == 0 else 0.0,
                    float(training.interruption.number > 0),
                ],
                training.device,
            )
            if stop:
                training.save()
                raise KeyboardInterrupt
            progress = clock.progress(training.epoch + training.step / steps, seconds)
            if progress >= 1:
                break
            training.learn(batch, whole, progress)
            training.save_if_due()
            if training.step % 10 == 0 or training.step - begun < 10:
                rate = 2 * config.batch * (training.step - begun) / (time.perf_counter() - start)
                loss, miou = training.losses / training.step, training.score.miou()
                bar.set_postfix_str(f"loss {loss:.3f}, mIoU {miou:.1f}, {rate:.1f} images/s", refresh=False)
            bar.update()


def _validate(training):
    try:
        with training.interruption.immediate():
            scores = evaluate(
                predictor(training.model.eval(), training.device, training.dtype, rule=training.config.rule),
                training.validation,
                training.benchmark.classes(training.config.fold, "val"),
                batch=episodes_at_a_time(training.config, training.device),
                workers=training.workers,
                title="validation",
            )
    except KeyboardInterrupt:
        training.save()
        raise
    return scores["HSNet"].miou()


def _test(training):
    """Score the best epoch and draw; then the run is finished."""
    config, folder, benchmark, model = training.config, training.folder, training.benchmark, training.model
    last = {n: p.detach().clone() for n, p in training.learned.items()}
    with training.interruption.immediate():
        model.load_state_dict(training.best_model, strict=False)
        prototypes = fit_prototypes(model.eval(), config, benchmark, training.device)
        # An episode costs its K + 1 pictures: fewer of many shots, for about equal times. `hsnet.evaluate` scores them all.
        results = [
            test_run(
                model, config, benchmark, folder, shot, prototypes, count=max(1, 2 * config.test_episodes // (shot + 1))
            )
            for shot in config.shots
        ]
        if rank() == 0:
            draw_episodes(model, config, benchmark, folder / "episodes.png")
    model.load_state_dict(last, strict=False)
    training.save(finished=True)
    _say(runs.scores_table(results))
    _say(f"run      {folder}\npicture  {folder / 'episodes.png'}")


def backward(
    model: torch.nn.Module,
    query: Float[Tensor, "b 3 h w"],
    support: Float[Tensor, "b 3 h w"],
    support_mask: Bool[Tensor, "b h w"],
    query_mask: Bool[Tensor, "b h w"],
    weight: Float[Tensor, " 2"],
    dtype: torch.dtype = torch.float32,
    *,
    ignored: Bool[Tensor, "b h w"] | None = None,
    few: int = 0,
    whole: float | None = None,
    scale: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> tuple[Float[Tensor, ""], Bool[Tensor, "b h w"]]:
    """Add the gradients of a batch's loss, the mean cross-entropy over all its pixels; returns the loss and the masks.

    A few episodes at a time: the same sums in less memory, and on a CPU faster, for what is freed stays at hand.

    Args:
        query, support: normalised images.
        weight: of background and foreground pixels in the mean.
        dtype: the precision of the network's arithmetic.
        ignored: query pixels that do not count.
        few: episodes at a time; 0 for `episodes_at_once`.
        whole: the sum of the weights of all pixels, where the batch is a part of a larger one.
        scale: of a gradient scaler, for the loss that is differentiated.
    """
    if whole is None:
        whole = pixel_weight(query_mask, ignored, weight)
    truth = query_mask.long() if ignored is None else query_mask.long().masked_fill(ignored, IGNORED)
    loss, masks = torch.zeros((), device=query.device), []
    parts = (
        tensor.split(few or episodes_at_once(query.shape, query.device))
        for tensor in (query, support, support_mask, truth)
    )
    for some_query, some_support, some_mask, some_truth in zip(*parts, strict=True):
        with torch.autocast(query.device.type, dtype, enabled=dtype != torch.float32):
            logits = model(some_query, some_support, some_mask)
        part = F.cross_entropy(logits.float(), some_truth, weight=weight, ignore_index=IGNORED, reduction="sum") / whole
        scale(part).backward()
        loss += part.detach()
        masks.append(logits.detach()[:, 1] > logits.detach()[:, 0])
    return loss, torch.cat(masks)


def pixel_weight(
    query_mask: Bool[Tensor, "b h w"], ignored: Bool[Tensor, "b h w"] | None, weight: Float[Tensor, " 2"]
) -> float:
    """The sum of the weights of all pixels that count: what the sum of their losses is divided by."""
    weights = weight[query_mask.long()]
    # Where no pixel counts there is no loss either: any divisor does.
    return (weights if ignored is None else weights.masked_fill(ignored, 0)).sum().item() or 1.0


def episodes_at_once(shape: tuple[int, ...], device: torch.device) -> int:
    """How many of (b, 3, h, w) pictures `backward` takes at a time unless told: all on a GPU, few on a CPU."""
    count, _, h, w = shape
    return count if device.type == "cuda" else max(1, FEW // h**2 // w**2)


def _trained_at_a_time(config, device):
    """How many episodes a training step of this process takes at a time."""
    begin, end = part_of(config.batch, 0, world())
    shape = end - begin, 3, config.size, config.size
    return min(config.micro_batch or episodes_at_once(shape, device), end - begin)


def make_optimizers(config: Config, learned: dict[str, torch.nn.Parameter]) -> list[torch.optim.Optimizer]:
    """Adam for all; or Muon for the kernels and Adam for biases and normalisations, and for a backbone that is trained too."""
    if config.optimizer == "adam":
        optimizers = [torch.optim.Adam(learned.values(), lr=config.learning_rate)]
    else:
        groups: dict[str, list[torch.nn.Parameter]] = {"kernels": [], "biases": [], "backbone": []}
        for name, p in learned.items():
            groups["backbone" if name.startswith(BACKBONE) else "kernels" if p.ndim > 1 else "biases"].append(p)
        optimizers = [
            Muon(groups["kernels"], lr=config.learning_rate),
            torch.optim.Adam(groups["biases"], lr=BIAS_LEARNING_RATE),
        ]
        if groups["backbone"]:
            optimizers.append(torch.optim.Adam(groups["backbone"], lr=BACKBONE_LEARNING_RATE))
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["initial_lr"] = group["lr"]
    return optimizers


class Clock:
    """How far a training has come, by epochs or by minutes, whichever runs out first, and the learning rate there."""

    WARM_UP = 0.05  # of the training, where the schedule is "cosine"

    def __init__(self, config: Config, episodes: int, seconds_before: float | int):
        self.config = config
        self.start = time.perf_counter() - seconds_before

    def seconds(self) -> float:
        """Time since the training began, earlier sittings included. Nobody can set this clock."""
        return time.perf_counter() - self.start

    def progress(self, epochs: float | int, seconds: float | int | None = None) -> float:
        """Share of the training that is done after so many epochs and seconds (default: now): 0 to 1."""
        seconds = self.seconds() if seconds is None else seconds
        by_time = seconds / (60 * self.config.minutes) if self.config.minutes else 0.0
        return max(epochs / self.config.epochs, by_time)

    def schedule(self, progress: float | int) -> float:
        """The factor of the learning rate: the paper's constant 1, or a linear rise and then half a cosine down to zero."""
        if self.config.schedule == "constant":
            return 1.0
        rise = min(1.0, (progress + 1e-3) / self.WARM_UP)
        return rise * (1 + math.cos(math.pi * min(progress, 1))) / 2


class Board:
    """What TensorBoard shows: losses, scores, and the same eight validation episodes as training goes on."""

    def __init__(self, training: Training):
        """Raises ImportError where TensorBoard is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("--tensorboard needs TensorBoard: pip install tensorboard") from error
        self.training = training
        self.writer = SummaryWriter(str(training.folder / "tensorboard"), purge_step=training.epoch + 1)
        dataset = training.validation
        self.batches = [dataset[i] for i in range(min(8, len(dataset)))]

    def epoch(self, line: dict) -> None:
        """Add an epoch's line of history, and its pictures."""
        training = self.training
        for name in ("loss", "train_miou", "val_miou"):
            self.writer.add_scalar(name, line[name], line["epoch"])
        predict = predictor(training.model.eval(), training.device, training.dtype)
        masks = torch.cat([predict(batch)["HSNet"] for batch in self.batches])
        batch = Batch.stack(self.batches)
        names = [training.benchmark.class_names[c] for c in batch.class_id.tolist()]
        figure = figures.episode_figure(batch, masks.numpy(), names, training.benchmark.attribution)
        self.writer.add_figure("validation episodes", figure, line["epoch"])
        self.writer.flush()


def _what_fits(config, folder, interruption):
    """The message of a training that found too little memory; see `fits.what_fits`."""
    device = choose_device(config.device)
    gc.collect()
    Memory(device)  # gives back what is free
    few = max(_trained_at_a_time(config, device), episodes_at_a_time(config, device))
    with interruption.immediate():
        return fits.what_fits(config, few, str(device), begun=(folder / LAST).exists())


def rehearse(config: Config) -> None:
    """A short training with a run's settings, in a folder that is thrown away: does its memory suffice?

    Two epochs of one step, so that the second finds the optimizers' state and a best epoch's weights, with four times
    as much validation, and then test, as is done at a time: memory falls to pieces where it is taken again and again. The whole support takes part, since less of a picture needs less.

    Raises:
        SystemExit: with the status `fits.NO_ROOM`, it does not.
    """
    fits.spare()
    few = episodes_at_a_time(config, choose_device(config.device))
    short = dataclasses.replace(
        config,
        # Kernels that are given the whole pyramid hold the masked features besides, whatever the mask.
        mask_support=config.mask_support and config.kernel != "center-pivot",
        shot=str(max(config.shots)),
        epochs=2,
        minutes=0.0,
        epoch_episodes=config.batch,
        val_episodes=4 * few,
        test_episodes=4 * few * (max(config.shots) + 1) // 2,
        workers=0,
        tensorboard=False,
        name="rehearsal",
    )
    with tempfile.TemporaryDirectory() as name, Interruption() as interruption:
        folder = Path(name)
        short.save(folder / "config.json")
        try:
            training = Training(short, folder, interruption, None)
            _run_epochs(training)
            _test(training)
        except (RuntimeError, MemoryError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            raise SystemExit(fits.NO_ROOM) from None


def _foresee(training):
    """An estimate of the memory, from one and two episodes whose objects fill their pictures.

    Raises:
        MemoryError: there is less, naming what fits.
    """
    config, device = training.config, training.device
    one = training.dataset[0]
    one = dataclasses.replace(one, support_mask=torch.ones_like(one.support_mask)).to(device)
    predict = predictor(training.model, device, training.dtype)

    def learn(count):
        training.model.train()
        training.gradients(Batch.stack([one] * count), 1.0, count)

    def validate(count):
        training.model.eval()
        predict(Batch.stack([one] * count))

    state = sum(
        p.numel() * p.element_size() * (2 if p.ndim == 1 or config.optimizer == "adam" else 1)
        for p in training.learned.values()
    )
    few = _trained_at_a_time(config, device)
    needs = []
    for work, count in ((learn, few), (validate, episodes_at_a_time(config, device))):
        work(1)  # gradients, and what libraries keep
        peaks = []
        for n in (1, 2):
            memory = Memory(device)
            work(n)
            peaks.append(memory.peak() - memory.before)
        each = max(0, peaks[1] - peaks[0])
        needs.append((max(0, peaks[0] - each), each, count))
    training.model.zero_grad()
    now = Memory(device).before
    base = now + state + sum(p.numel() * p.element_size() for p in training.learned.values())
    fixed, each, count = max(needs, key=lambda need: need[0] + need[1] * need[2])
    total = base + fixed + each * count
    free = free_memory(device)
    if free is not None and total - now > free:
        # One number for all that is done: training and scoring.
        few = min((int((free - (base - now) - part) // each) for part, each, _ in needs if each), default=0)
        advice = f"--micro-batch {few} should fit" if few >= 1 else "give a smaller --size or --recompute"
        raise NoRoomError(
            f"about {total / 1e9:.2f} GB are needed with {count} episodes at a time, and {free / 1e9:.2f} GB are free on {device}: {advice}"
        )
    known = "" if free is None else f"; {free / 1e9:.2f} GB are free"
    return (
        f"memory   about {total / 1e9:.2f} GB, estimated: {(base + fixed) / 1e9:.2f} GB and {each / 1e9:.3f} GB for each of "
        f"{count} episodes at a time{known}"
    )


def _start_from(run, model):
    """Load a run's weights into a model."""
    try:
        load_weights(model, weights_of(run))
    except (OSError, ValueError) as error:
        raise (ValueError if isinstance(error, ValueError) else FileNotFoundError)(
            f"start is {run!r}: {error}"
        ) from error


def _say(text):
    if rank() == 0:
        print(text, flush=True)


def _remove_if_empty(folder):
    with suppress(OSError):
        folder.rmdir()


def _make(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionError(
            f"{folder} cannot be written ({error.strerror}): set HSNET_DATA to a folder of yours, or put its permissions right"
        ) from error


def _find_state(config, folder, resume):
    """The state to go on from, or None for a new run."""
    state = load_checkpoint(folder)
    if state is None:
        if resume:
            raise FileNotFoundError(f"nothing to resume: {folder} has no {LAST}. Leave --resume out to start it")
    else:
        before = state.get("config")
        if before is None:
            raise ValueError(
                f"{folder / LAST} was written by an older version: give a new --name, or delete that folder"
            )
        before = vars(Config()) | before  # an older version had fewer settings
        free = FREE + (LONGER if resume else ())
        other = [f"{k} {before[k]!r}, now {v!r}" for k, v in vars(config).items() if k not in free and before[k] != v]
        if other:
            longer = "" if resume else f" With --resume, {', '.join(LONGER)} may differ"
            raise ValueError(
                f"the run {config.run} was started with {'; '.join(other)}. Give the same settings, or a new --name.{longer}"
            )
        state["finished"] &= all(before[name] == getattr(config, name) for name in LONGER)
    return state


def list_runs() -> str:
    """Markdown: every run of the data folder, what it is doing, and its best scores."""
    rows = []
    for folder in sorted((data_folder() / "runs").glob("*/")):
        if not (folder / "config.json").exists():
            continue
        try:
            config = Config.load(folder / "config.json")
        except ValueError as error:
            rows.append([folder.name, str(error), "–", "–", "–"])
            continue
        history = folder / "history.jsonl"
        lines = [json.loads(line) for line in history.read_text().splitlines()] if history.exists() else []
        tests = {test["shot"]: test for test in runs.read_tests(folder)}
        holder = lock_holder(folder)
        if holder:
            state = f"running, {holder}"
        elif tests:
            state = "finished"
        elif (folder / LAST).exists():
            state = "stopped: the same command goes on"
        else:
            state = "nothing saved yet"
        best = max(lines, key=lambda line: (line["val_miou"], line["epoch"]), default=None)
        rows.append(
            [
                folder.name,
                state,
                f"{len(lines)} of {config.epochs}",
                f"{best['val_miou']:.1f} (epoch {best['epoch']})" if best else "–",
                ", ".join(f"{t['scores']['HSNet']['miou']:.1f} ({shot}-shot)" for shot, t in tests.items()) or "–",
            ]
        )
    if not rows:
        return f"no runs under {data_folder() / 'runs'} yet: `make train` trains one"
    return runs.markdown(["run", "state", "epochs", "best validation mIoU", "test mIoU"], rows)


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        prog="python -m hsnet.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_settings(parser)
    parser.add_argument(
        "--resume", action="store_true", help="there must be a run to go on with; more epochs or minutes may be given"
    )
    parser.add_argument(
        "--memory", action="store_true", help="estimate the memory before training, and measure its peak"
    )
    parser.add_argument("--rehearse", help=argparse.SUPPRESS)  # see `fits`
    parser.add_argument("--list", action="store_true", help="show the runs, how far they are and their best scores")
    arguments = parser.parse_args()
    if arguments.rehearse:
        rehearse(Config(**json.loads(arguments.rehearse)))
        return
    if arguments.list:
        print(list_runs())
        return
    try:
        train(config_from(arguments), arguments.resume, arguments.memory)
    except KeyboardInterrupt:  # `train` has said what is saved
        raise SystemExit(128 + signal.SIGINT) from None


if __name__ == "__main__":
    run_program(main)
