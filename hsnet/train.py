"""Train HSNet, end to end: episodes, network, validation, test, a folder with everything.

    python -m hsnet.train                                     the embedded benchmark, on whatever machine this is
    python -m hsnet.train --benchmark shapes --epochs 5       drawn by code: nothing is fetched
    python -m hsnet.train --benchmark coco --root DIR         photographs: COCO's annotations and images under DIR
    python -m hsnet.train --resume                            go on where Ctrl-C or a power cut ended it

A run is a folder, data/runs/NAME: config.json, history.jsonl (a line an epoch), model.safetensors (the best epoch),
last.pt (to resume), test-1shot.json, episodes.png. Every setting below is stored with it.
"""

import argparse
import json
import math
import time
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from . import records
from .benchmarks import benchmark_of
from .checkpoints import WEIGHTS, load_weights, save_model
from .config import Config, add_settings, config_from, data_folder, run_program
from .devices import choose_device, choose_precision
from .episodes import EpisodeDataset, test_episodes
from .evaluate import (
    choose_workers,
    draw_episodes,
    evaluate,
    fit_prototypes,
    predictor,
    test_run,
)
from .model import HSNet
from .muon import Muon

LAST = "last.pt"
IGNORED = -100  # the truth of pixels that do not count in the loss
# Episodes at a time on a CPU: so many that the finest level's first 16 channels, (side / 8)² · (side / 32)² positions in
# float32, take at most 32 MB. More than that the C library takes from the system, and gives back, with every tensor.
FEW = 2**35
BIAS_LEARNING_RATE = 1e-3  # of Adam, for what Muon does not move


def train(config: Config, resume: bool = False) -> Path:
    """Train, test and draw; see the module's docstring for what is written.

    Args:
        resume: go on from the run's last epoch.

    Returns:
        The run's folder.

    Raises:
        FileExistsError: the run exists and `resume` is not set.
        FileNotFoundError: nothing to resume, or missing data.
        ValueError: a setting that does not fit.
    """
    torch.manual_seed(config.seed)
    device = choose_device(config.device)
    dtype = choose_precision(config.precision, device)
    if config.benchmark == "coco-to-pascal":
        raise ValueError(
            "coco-to-pascal only tests: train on coco, then `python -m hsnet.evaluate RUN --benchmark coco-to-pascal`"
        )
    benchmark = benchmark_of(config)
    for split, tolerated in (("train", config.bad_files), ("val", 0), ("test", 0)):
        benchmark.check(config.fold, split, tolerated)
    class_ids = benchmark.classes(config.fold, "val")
    folder = _open_run(config, resume)

    model = HSNet(**config.model_settings).to(device)
    model.training_size = config.size
    learned = model.learned_parameters()
    optimizers = make_optimizers(config, list(learned.values()))
    print(
        f"{folder.name}: {sum(p.numel() for p in learned.values()):,} parameters to learn, {device}, {str(dtype)[6:]}"
    )

    count = config.epoch_episodes or benchmark.training_queries(config.fold)
    dataset = EpisodeDataset(
        benchmark, config.size, fold=config.fold, count=count, seed=config.seed, bad_files=config.bad_files
    )
    workers = choose_workers(config.workers)
    val_list = test_episodes(benchmark, fold=config.fold, shot=1, count=config.val_episodes, split="val")
    validation = EpisodeDataset(benchmark, config.size, val_list)

    state = {"epoch": 0, "seconds": 0.0, "best": -1.0}
    if resume:
        state |= _restore(folder, model, optimizers)
    clock = Clock(config, count, state["seconds"])
    for epoch in range(state["epoch"], config.epochs):
        if clock.progress(epoch) >= 1:
            break
        dataset.epoch = epoch
        loss = train_one_epoch(model, dataset.loader(config.batch, workers), optimizers, clock, epoch, device, dtype)
        scores = evaluate(
            predictor(model.eval(), device, dtype, rule=config.rule),
            validation,
            class_ids,
            batch=config.batch,
            workers=workers,
            title="validation",
        )
        miou = scores["HSNet"].miou()
        best = miou >= state["best"]  # of equal epochs the later one has seen more
        state = {"epoch": epoch + 1, "seconds": clock.seconds(), "best": max(miou, state["best"])}
        if best:
            save_model(folder / WEIGHTS, model)
        _save_last(folder, model, optimizers, state)
        line = {
            "epoch": epoch + 1,
            "loss": round(loss, 5),
            "val_miou": round(miou, 3),
            "best": best,
            "seconds": round(state["seconds"], 1),
        }
        with (folder / "history.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        mark = "   best so far" if best else ""
        print(f"epoch {epoch + 1:3d}   loss {loss:.4f}   validation mIoU {miou:5.1f}   {clock.seconds():.0f} s{mark}")

    load_weights(model, folder / WEIGHTS)
    prototypes = fit_prototypes(model.eval(), config, benchmark, device)
    # An episode costs its K + 1 pictures: fewer of many shots, for about equal times. `hsnet.evaluate` scores them all.
    results = [
        test_run(
            model, config, benchmark, folder, shot, prototypes, count=max(1, 2 * config.test_episodes // (shot + 1))
        )
        for shot in config.shots
    ]
    picture = draw_episodes(model, config, benchmark, folder / "episodes.png")
    print(records.scores_table(results))
    print(f"run      {folder}\npicture  {picture}")
    return folder


def train_one_epoch(model, loader, optimizers, clock, epoch, device, dtype) -> float:
    """One pass over an epoch's episodes; returns the mean loss."""
    model.train()
    total = torch.zeros((), device=device)
    weight = torch.tensor([1.0, clock.config.foreground_weight], device=device)
    steps = len(loader)
    bar = tqdm(loader, desc=f"epoch {epoch + 1}", unit="step", leave=False)
    done = 0
    for step, batch in enumerate(bar):
        progress = clock.progress(epoch + step / steps)
        if progress >= 1:
            break
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = clock.schedule(progress) * group["initial_lr"]
        batch = batch.to(device)
        query, support = model.backbone.normalize(batch.query), model.backbone.normalize(batch.support[:, 0])
        model.zero_grad()
        ignored = batch.ignored if clock.config.boundary == "ignore" else None
        loss = backward(model, query, support, batch.support_mask[:, 0], batch.query_mask, weight, dtype, ignored)
        for optimizer in optimizers:
            optimizer.step()
        total += loss
        done += 1
        if step % 10 == 0:  # reading the loss waits for a GPU
            bar.set_postfix(loss=f"{total.item() / done:.3f}")
    return total.item() / max(done, 1)


def backward(
    model: torch.nn.Module,
    query: Float[Tensor, "b 3 h w"],
    support: Float[Tensor, "b 3 h w"],
    support_mask: Bool[Tensor, "b h w"],
    query_mask: Bool[Tensor, "b h w"],
    weight: Float[Tensor, " 2"],
    dtype: torch.dtype = torch.float32,
    ignored: Bool[Tensor, "b h w"] | None = None,
) -> Float[Tensor, ""]:
    """Add the gradients of a batch's loss, the mean cross-entropy over all its pixels; returns the loss.

    On a CPU a few episodes at a time: the same sums in less memory, and faster, for what is freed stays at hand.

    Args:
        query, support: normalised images.
        weight: of background and foreground pixels in the mean.
        dtype: the precision of the network's arithmetic.
        ignored: pixels that do not count.
    """
    truth = query_mask.long() if ignored is None else query_mask.long().masked_fill(ignored, IGNORED)
    few = len(query) if query.is_cuda else max(1, FEW // query.shape[-2] ** 2 // query.shape[-1] ** 2)
    whole = weight[truth[truth != IGNORED]].sum()
    loss = torch.zeros((), device=query.device)
    parts = (tensor.split(few) for tensor in (query, support, support_mask, truth))
    for some_query, some_support, some_mask, some_truth in zip(*parts, strict=True):
        with torch.autocast(query.device.type, dtype, enabled=dtype != torch.float32):
            logits = model(some_query, some_support, some_mask)
        losses = F.cross_entropy(logits.float(), some_truth, weight=weight, reduction="sum", ignore_index=IGNORED)
        part = losses / whole
        part.backward()
        loss += part.detach()
    return loss


def make_optimizers(config: Config, parameters: list[torch.nn.Parameter]) -> list[torch.optim.Optimizer]:
    """Adam for all; or Muon for the kernels and Adam for biases and normalisations."""
    if config.optimizer == "adam":
        optimizers = [torch.optim.Adam(parameters, lr=config.learning_rate)]
    else:
        optimizers = [
            Muon([p for p in parameters if p.ndim > 1], lr=config.learning_rate),
            torch.optim.Adam([p for p in parameters if p.ndim == 1], lr=BIAS_LEARNING_RATE),
        ]
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
        """Time since the training began, earlier sittings included."""
        return time.perf_counter() - self.start

    def progress(self, epochs: float | int) -> float:
        """Share of the training that is done after so many epochs: 0 to 1."""
        by_time = self.seconds() / (60 * self.config.minutes) if self.config.minutes else 0.0
        return max(epochs / self.config.epochs, by_time)

    def schedule(self, progress: float | int) -> float:
        """The factor of the learning rate: the paper's constant 1, or a linear rise and then half a cosine down to zero."""
        if self.config.schedule == "constant":
            return 1.0
        rise = min(1.0, (progress + 1e-3) / self.WARM_UP)
        return rise * (1 + math.cos(math.pi * min(progress, 1))) / 2


def _open_run(config, resume):
    folder = data_folder() / "runs" / config.run
    if (folder / LAST).exists() and not resume:
        raise FileExistsError(
            f"the run {config.run} exists ({folder}): go on with --resume, train another with --name, or delete that folder"
        )
    if resume:
        if not (folder / LAST).exists():
            raise FileNotFoundError(f"nothing to resume: {folder} has no {LAST}. Leave --resume out to start it")
        _check_same(config, Config.load(folder / "config.json"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        config.save(folder / "config.json")
        if not resume:
            (folder / "history.jsonl").write_text("")
    except OSError as error:
        raise PermissionError(
            f"{folder} cannot be written ({error.strerror}): set HSNET_DATA to a folder of yours, or put its permissions right"
        ) from error
    return folder


def _check_same(config, before):
    """Only what does not change the outcome's meaning may differ between sittings."""
    free = {"epochs", "minutes", "workers", "device", "name", "root", "bad_files"}
    other = [
        f"{k} {getattr(before, k)!r}, now {v!r}"
        for k, v in vars(config).items()
        if k not in free and getattr(before, k) != v
    ]
    if other:
        raise ValueError(
            f"--resume: the run was started with {'; '.join(other)}. Resume it with the same, or give a new --name"
        )


def _save_last(folder, model, optimizers, state):
    stored = {
        "model": {n: p.detach() for n, p in model.learned_parameters().items()},
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        **state,
    }
    temporary = folder / (LAST + ".tmp")
    torch.save(stored, temporary)
    temporary.replace(folder / LAST)


def _restore(folder, model, optimizers):
    try:
        stored = torch.load(folder / LAST, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(f"{folder / LAST} is damaged ({error}): delete the folder and train anew") from error
    model.load_state_dict(stored.pop("model"), strict=False)
    for optimizer, state in zip(optimizers, stored.pop("optimizers"), strict=True):
        optimizer.load_state_dict(state)
    return stored


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        prog="python -m hsnet.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_settings(parser)
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")
    arguments = parser.parse_args()
    config = config_from(arguments)
    try:
        train(config, arguments.resume)
    except KeyboardInterrupt:
        folder = data_folder() / "runs" / config.run
        if (folder / LAST).exists():
            print(f"\nstopped. The last finished epoch is in {folder}; go on with the same command and --resume")
        else:
            print("\nstopped before the first epoch was finished: nothing was saved")
        raise SystemExit(130) from None


if __name__ == "__main__":
    run_program(main)
