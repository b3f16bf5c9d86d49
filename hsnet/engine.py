"""From a batch to a number: the training step, one epoch, one evaluation, one test.

`Learner.train_one_epoch` is the loop in which everything is learned; `evaluate` the one in which everything is scored.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from . import baselines, runs
from .averaging import features_of, mean_maps, prepare_supports, zooms
from .baselines import Prototypes, with_prior
from .benchmarks import Benchmark, Episode
from .config import Config
from .devices import choose_device, choose_precision, choose_workers, computing_in, describe, exact_float32
from .distributed import Message, all_gather, broadcast, part_of, rank, world
from .episodes import Batch, EpisodeDataset, require_readable, test_episodes, test_lists, uploaded
from .fast.compiling import compile_network
from .memory import scored_at_a_time, trained_at_a_time
from .metrics import SegmentationScore
from .model import HSNet
from .optim import Clock, make_optimizers, scale_learning_rates
from .windows import DETAIL

Predictor = Callable[[Batch], dict[str, Tensor]]  # masks, bool b h w, by the name that tables show
RECORDED = ("HSNet", "prototypes", "all foreground")  # masks whose areas are kept; the last one's are the objects'
IGNORED = -100  # the truth of pixels that do not count in the loss
TRACED = ("benchmark", "fold", "protocol", "novel_images", "boundary")  # of a run's training, kept with its tests
# A mean cross-entropy above this has exploded: an untrained network has 0.7, one that is sure and wrong everywhere 20.
EXPLODED = 20.0
READ_EVERY = {"cuda": 10}  # steps between two looks at what a device computed, if not 1: a GPU works on meanwhile


def pixel_loss(
    logits: Float[Tensor, "b 2 h w"],
    truth: Bool[Tensor, "b h w"],
    weight: Float[Tensor, " 2"],
    ignored: Bool[Tensor, "b h w"] | None = None,
) -> Float[Tensor, ""]:
    """The sum of the pixels' weighted cross-entropies, without those that are ignored; over `pixel_weight`, their mean.

    Args:
        weight: of background and foreground pixels.
    """
    target = truth.long() if ignored is None else truth.long().masked_fill(ignored, IGNORED)
    return F.cross_entropy(logits.float(), target, weight=weight, ignore_index=IGNORED, reduction="sum")


def pixel_weight(
    truth: Bool[Tensor, "b h w"], weight: Float[Tensor, " 2"], ignored: Bool[Tensor, "b h w"] | None = None
) -> Float[Tensor, ""]:
    """The sum of the weights of all pixels that count, or a tiny number: what `pixel_loss` is divided by."""
    weights = weight[truth.long()]
    return (weights if ignored is None else weights.masked_fill(ignored, 0)).sum().clamp(min=1e-12)


class Learner:
    """The network in training: what a step needs, and what it changes.

    The loss and the areas of a step stay on the device until `log` reads them. A step whose loss or gradient is not sound
    changes nothing, nor does any after it: `log` then finds the weights from before.

    Attributes:
        learned: the parameters that training changes, by name.
        dataset, validation: the episodes of both.
        epoch, step: epochs, and steps of the running epoch, that are done.
        losses, score: their sum over the running epoch, and its areas.
        message, rows: a step's gradients and numbers; the numbers of the steps that `log` has not read.
    """

    def __init__(self, config: Config):
        torch.manual_seed(config.seed)
        self.config, self.device = config, choose_device(config.device)
        self.dtype = choose_precision(config.precision, self.device)
        self.benchmark = config.load_benchmark()
        for split in ("train", "val", "test"):
            self.benchmark.check(config.fold, split)
        self.workers = choose_workers(config.workers)
        self.model = HSNet(**config.model_settings).to(self.device)
        self.model.training_size = config.size
        self.model.encoder.recompute = config.recompute
        if config.compile:
            compile_network(self.model)
        self.learned = self.model.learned_parameters()
        self.optimizers = make_optimizers(config, self.learned)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.weight = torch.tensor([1.0, config.foreground_weight], device=self.device)
        count = config.epoch_episodes or self.benchmark.training_queries(config.fold)
        drawn = {"fold": config.fold, "count": count, "seed": config.seed, "augment": config.augmentations}
        self.dataset = EpisodeDataset(self.benchmark, config.size, **drawn)
        val_list = test_episodes(self.benchmark, fold=config.fold, shot=1, count=config.val_episodes, split="val")
        self.validation = EpisodeDataset(self.benchmark, config.size, val_list)
        require_readable(self.validation, "validation", max(1, self.workers))
        for shot in config.shots:  # now, not after days of training
            for tested in test_lists(self.benchmark, fold=config.fold, shot=shot, count=config.test_episodes):
                dataset = EpisodeDataset(
                    self.benchmark, config.size, tested, detail=DETAIL if config.rule == "mean" else 1
                )
                require_readable(dataset, "test", max(1, self.workers))
        self.score = SegmentationScore(self.benchmark.classes(config.fold, "train"))
        self.epoch, self.step, self.losses = 0, 0, 0.0
        self.message = Message(self.learned.values(), max(self.score.class_ids) + 1)
        self.every = READ_EVERY.get(self.device.type, 1)
        self.rows, self.unread = self.message.numbers.repeat(self.every, 1), 0
        self.sound = torch.ones((), dtype=torch.bool, device=self.device)  # all steps so far
        self.skip = torch.zeros((), device=self.device)  # 1: the step changes nothing
        for optimizer in self.optimizers:
            optimizer.found_inf = self.skip

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {
            "model": {n: p.detach() for n, p in self.learned.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "losses": self.losses,
            "areas": self.score.rows,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from a `state`. No random generator is part of it: see `EpisodeDataset`."""
        self.model.load_state_dict(state["model"], strict=False)
        for optimizer, stored in zip(self.optimizers, state["optimizers"], strict=True):
            # The settings are the configuration's: an older version's Adam was not fused.
            optimizer.load_state_dict(stored | {"param_groups": optimizer.state_dict()["param_groups"]})
        if state["scaler"]:  # empty where another device computed in another precision
            self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step, self.losses = state["epoch"], state["step"], state["losses"]
        self.score.extend(state["areas"])

    def train_one_epoch(self, clock: Clock, stopped: Callable[[], bool], after_step: Callable[[], None]) -> None:
        """The remaining steps of the running epoch.

        Args:
            clock: says when time is up, and the learning rate.
            stopped: whether this process was asked to stop; asked in each step.
            after_step: called after each step that was read, for checkpoints: after each, on a CPU.

        Raises:
            KeyboardInterrupt: one of the processes was asked to stop.
            ValueError: a loss or gradient that is not finite, or exploded; the weights are those from before.
        """
        config, begun, start = self.config, self.step, time.perf_counter()
        self.model.train()
        self.dataset.epoch = self.epoch
        loader = self.dataset.loader(config.batch, self.workers, first=begun, share=(rank(), world()))
        steps, micro_batch = begun + len(loader), trained_at_a_time(config, self.device)
        message, title, seconds = self.message, f"epoch {self.epoch + 1}", broadcast(clock.seconds())
        bar = tqdm(total=steps, initial=begun, desc=title, unit="step", leave=False, disable=rank() > 0)
        with bar, exact_float32(self.dtype):
            # load: this process's part of the step's episodes; None where it has none
            for step, batch in enumerate(uploaded(loader, self.device), begun + 1):
                progress = clock.progress(self.epoch + (step - 1) / steps, seconds)
                if progress >= 1:
                    break
                scale_learning_rates(self.optimizers, clock.schedule(progress))
                message.content.zero_()
                torch.compiler.cudagraph_mark_step_begin()  # with --compile: what earlier graphs returned is used up
                for part in batch.split(micro_batch) if batch else ():
                    logits = self.forward(part)  # forward: b 2 h w
                    loss, divisor = self.sums(logits, part)  # loss: divided when all parts are summed
                    self.scaler.scale(loss).backward()  # backward: gradients add up in the message
                    message.loss += loss.detach()
                    message.divisor += divisor
                    areas = SegmentationScore.areas(logits[:, 1] > logits[:, 0], part.query_mask, part.ignored)
                    message.areas.index_add_(0, part.class_id, areas.float())
                read = step % self.every == 0 or step == steps or (world() == 1 and stopped())
                if read:
                    message.stop.fill_(stopped())
                    message.seconds.fill_(clock.seconds() * (rank() == 0))
                message.all_reduce()
                self.check()
                for optimizer in self.optimizers:  # step
                    self.scaler.unscale_(optimizer)
                    self.scaler.step(optimizer)
                self.scaler.update()
                if not read:
                    continue
                stop, seconds = self.log()  # log: waits for the device
                if stop:
                    raise KeyboardInterrupt
                after_step()
                bar.update(self.step - bar.n)
                if self.step - begun < 10 or self.step % 10 == 0:
                    rate = 2 * config.batch * (self.step - begun) / (time.perf_counter() - start)
                    text = f"loss {self.losses / self.step:.3f}, mIoU {self.score.miou():.1f}, {rate:.1f} images/s"
                    bar.set_postfix_str(text, refresh=False)

    def forward(self, batch: Batch) -> Float[Tensor, "b 2 h w"]:
        """The logits of a batch on the device."""
        query, support = (self.model.backbone.normalize(x) for x in (batch.query, batch.support[:, 0]))
        with computing_in(self.dtype, self.device):
            return self.model(query, support, batch.support_mask[:, 0])

    def sums(self, logits: Float[Tensor, "b 2 h w"], batch: Batch) -> list[Float[Tensor, ""]]:
        """`pixel_loss` and `pixel_weight`; a fixed divisor keeps them in the range of half precision."""
        ignored = batch.ignored if self.config.boundary == "ignore" else None
        loss = pixel_loss(logits, batch.query_mask, self.weight, ignored)
        divisor = pixel_weight(batch.query_mask, self.weight, ignored)
        return [x / (self.config.batch * self.config.size**2) for x in (loss, divisor)]

    def check(self) -> None:
        """Let the optimizers change nothing if this step, or one before it, is not sound; keep its numbers for `log`."""
        message, scaled = self.message, self.scaler.is_enabled()
        finite = message.gradients.norm().isfinite()
        # Scaled gradients are meant to overflow now and then: the scaler leaves that step out.
        self.sound &= (message.loss.abs() <= EXPLODED) & (finite | scaled)
        message.sound.copy_(self.sound)
        self.skip.copy_(~(self.sound & finite))
        message.gradients.masked_fill_(self.skip != 0, torch.nan if scaled else 0)  # a scaler looks for itself
        self.rows[self.unread].copy_(message.numbers)
        self.unread += 1

    def log(self) -> list[float]:
        """Count the steps since the last time; raise ValueError if one was not sound.

        Returns whether a process was asked to stop, and the first one's seconds.
        """
        rows, self.unread = self.rows[: self.unread].tolist(), 0
        for *areas, loss, _, sound, _, _ in rows:
            if not sound:
                raise self._unsound(loss)
            table = zip(*[map(int, areas)] * 4, strict=True)  # by class
            self.score.extend([c, *row] for c, row in enumerate(table) if any(row))
            self.score.condense(beyond=1000 + len(self.score.class_ids))
            self.losses, self.step = self.losses + loss, self.step + 1
        return rows[-1][-2:]

    def end_epoch(self) -> None:
        """Count the epoch; the next one begins at its first step."""
        self.epoch, self.step, self.losses = self.epoch + 1, 0, 0.0
        self.score.reset()

    def validate(self) -> float:
        """mIoU on the validation episodes."""
        predict = predictor(self.model.eval(), self.device, self.dtype, rule=self.config.rule)
        episodes = self.validation.episodes
        return evaluate_run(predict, self.config, self.benchmark, episodes, "validation", split="val")["HSNet"].miou()

    def _unsound(self, loss):
        """The error of a step, the first that was not counted: which of its episodes it comes from."""
        first, suspects = self.step * self.config.batch, [(False, 0.0, "in another process")]
        begin, end = part_of(min(self.config.batch, len(self.dataset) - first), rank(), world())
        for index in range(first + begin, first + end):
            one = self.dataset[index].to(self.device)
            self.message.content.zero_()
            alone = torch.div(*self.sums(self.forward(one), one))
            alone.backward()
            episode, sound = self.dataset.episode(index), (alone + self.message.gradients.norm()).isfinite().item()
            text = f"{index} (query {episode.query!r}, support {episode.supports[0]!r}, loss {alone.item():.4g})"
            suspects.append((not sound, alone.item(), text))
        exploded = not abs(loss) <= EXPLODED
        return ValueError(
            f"{f'the loss is {loss:.4g}' if exploded else 'a gradient is not finite'} in epoch {self.epoch + 1}, step "
            f"{self.step + 1}: training stops before it spoils the weights. The worst of its episodes: {max(suspects)[-1]}. "
            "The last checkpoint is from before. Look at that episode, or train another run with a --learning-rate below "
            f"{self.config.learning_rate}"
        )


def predictor(
    model: HSNet,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    prototypes: Prototypes | None = None,
    rule: str = "paper",
    zoom: bool = False,
) -> Predictor:
    """A function from a batch to the masks of the model and of the prototypes (on the CPU).

    The masks have the size of the batch's truth.

    Args:
        rule: how the masks of several supports become one: see `vote`, or "mean" with the model's thresholds and prior.
        zoom: with the rule "mean", process windows (`averaging.zooms`); images are then `windows.DETAIL` times as large.
    """

    @torch.no_grad()
    def predict(batch):
        batch = batch.to(device)
        torch.compiler.cudagraph_mark_step_begin()
        size = batch.query_mask.shape[-2:]
        with computing_in(dtype, device):
            masks = {}
            if rule == "mean":
                side = batch.query.shape[-1] // (DETAIL if zoom else 1)
                supports = prepare_supports(model, batch.support, batch.support_mask, side, zoom)
                maps, contrast = mean_maps(model, batch.query, supports, size, zoom)
                probability = with_prior(maps.mean(dim=1), contrast, model.prior)
                masks["HSNet"] = probability > model.thresholds[maps.shape[1] > 1]
                batch = batch.resized(side)
            if rule != "mean" or prototypes is not None:
                query, support = features_of(model, batch)
            if rule != "mean":
                masks["HSNet"] = model.predict_from_features(query, support, batch.support_mask, size, rule)
            if prototypes is not None:
                masks["prototypes"] = prototypes.predict(query, support, batch.support_mask, size)
        return {name: mask.cpu() for name, mask in masks.items()}

    return predict


def evaluate(
    predict: Predictor, dataset: EpisodeDataset, class_ids: list[int], *, batch: int, workers: int, title: str
) -> dict[str, SegmentationScore]:
    """Score all masks that `predict` returns for the same episodes, with a progress bar.

    Several processes take the episodes in turn, none twice, and each returns the scores of all.
    """
    scores: dict[str, SegmentationScore] = {}
    own = dataset.episodes[rank() :: world()]
    shown = {"original_size": dataset.original_size, "detail": dataset.detail}
    dealt = EpisodeDataset(dataset.benchmark, dataset.size, own, **shown)
    with tqdm(total=len(dealt), desc=title, unit="episode", leave=False, disable=rank() > 0) as bar:
        for episodes in dealt.loader(batch, workers):
            for name, mask in predict(episodes).items():
                score = scores.setdefault(name, SegmentationScore(class_ids, dataset.benchmark.resample_classes))
                score.update(mask, episodes.query_mask, episodes.class_id, episodes.ignored)
            bar.update(len(episodes.class_id))
            first, score = next(iter(scores.items()))
            bar.set_postfix_str(f"{first} mIoU {score.miou():.1f}")
    if world() == 1:
        return scores
    areas = [dict(zip(scores, rows, strict=True)) for rows in zip(*(s.rows for s in scores.values()), strict=True)]
    areas, resample = all_gather(areas), dataset.benchmark.resample_classes
    return {name: SegmentationScore.from_rows((e[name] for e in areas), class_ids, resample) for name in areas[0]}


def evaluate_run(
    predict: Predictor,
    config: Config,
    benchmark: Benchmark,
    episodes: list[Episode],
    title: str,
    *,
    split: str = "test",
    original_size: bool = False,
    detail: int = 1,
) -> dict[str, SegmentationScore]:
    """`evaluate` with the size, batch and workers of a run's settings, and the classes of a split."""
    return evaluate(
        predict,
        EpisodeDataset(benchmark, config.size, episodes, original_size=original_size, detail=detail),
        benchmark.classes(config.fold, split),
        batch=scored_at_a_time(config, choose_device(config.device)),
        workers=choose_workers(config.workers),
        title=title,
    )


def fit_prototypes(model: HSNet, config: Config, benchmark: Benchmark, device: torch.device) -> Prototypes:
    """Choose the prototypes' level and rule on training concepts, as many as validation has, drawn apart from the training's."""
    drawn = {"fold": config.fold, "count": config.val_episodes, "seed": config.seed + 1}
    dataset, prototypes = EpisodeDataset(benchmark, config.size, **drawn), Prototypes()
    model = model.to(device)
    loader = dataset.loader(scored_at_a_time(config, device), choose_workers(config.workers))
    with torch.no_grad(), exact_float32():
        for batch in tqdm(loader, desc="fitting prototypes", unit="batch", leave=False):
            batch = batch.to(device)
            prototypes.observe(*features_of(model, batch), batch.support_mask, batch.query_mask)
    return prototypes


def test_run(
    model: HSNet,
    config: Config,
    benchmark: Benchmark,
    folder: Path,
    shot: int,
    prototypes: Prototypes | None = None,
    count: int | None = None,
    *,
    original_size: bool = False,
    checkpoint: dict | None = None,
) -> dict:
    """Score a model and the baselines on the test episodes; write `test-<shot>shot.json` and return its content.

    Args:
        prototypes: what `fit_prototypes` gave; None leaves this baseline out.
        count: score only so many of the configured episodes, the first ones of each list; the file says how many.
        original_size: score at the queries' own sizes, instead of the squares the network sees.
        checkpoint: what to record of the file of weights, if they are not the run's.

    Under the protocol "strict" there are five lists of episodes: "scores" is over all of them, "lists" of each.
    What is not the run's own test goes to another file, see `runs.test_path`: a quick look replaces nothing.
    """
    device = choose_device(config.device)
    dtype = choose_precision(config.precision, device)
    benchmark.check(config.fold, "test")
    zoom = zooms(model, config)
    learned = predictor(model.to(device).eval(), device, dtype, prototypes, config.rule, zoom)

    def predict(batch):
        simple = {"any object (oracle)": baselines.any_object(batch), "all foreground": baselines.all_foreground(batch)}
        return learned(batch) | simple

    lists = [e[:count] for e in test_lists(benchmark, fold=config.fold, shot=shot, count=config.test_episodes)]
    every = [episode for episodes in lists for episode in episodes]
    start = time.perf_counter()
    shown = {"original_size": original_size, "detail": DETAIL if zoom else 1}
    scores = evaluate_run(predict, config, benchmark, every, f"test, {shot}-shot", **shown)
    own = Config.load(folder / "config.json")
    result = {
        **{name: getattr(config, name) for name in ("benchmark", "fold", "rule", "size")},
        "shot": shot,
        "protocol": benchmark.protocol,
        "scored_at": "original size" if original_size else "size",
        "source": benchmark.source(),
        "training": checkpoint or {name: getattr(own, name) for name in TRACED},
        "digest": benchmark.digest(),
        "seconds": round(time.perf_counter() - start, 1),
        "device": describe(device),
        "precision": str(dtype)[6:],
        "parameters": sum(p.numel() for p in model.learned_parameters().values()),
        "torch": torch.__version__,
        **runs.traces(folder),
        "scores": {name: score.summary() for name, score in scores.items()},
        "resample_classes": benchmark.resample_classes,
        "columns": SegmentationScore.COLUMNS,
        "areas": {name: scores[name].rows for name in RECORDED if name in scores},
    }
    if prototypes is not None:
        result["prototypes"] = prototypes.rule()
    if len(lists) > 1:
        each = len(lists[0])
        parts = [scores["HSNet"].part(range(i * each, (i + 1) * each)) for i in range(len(lists))]
        result["lists"] = [
            {"seed": seed, "miou": part.miou(), "fb_iou": part.fb_iou(), "episodes": each}
            for seed, part in enumerate(parts)
        ]
    if rank() == 0:
        runs.write_json(runs.test_path(folder, config, shot, original_size), result)
    return result


test_run.__test__ = False  # its name makes pytest take it for a test
