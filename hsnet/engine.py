"""From a batch to a number: the training step, one epoch, one evaluation."""

import contextlib
import hashlib
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from . import baselines, figures, runs
from .baselines import Prototypes
from .benchmarks import Benchmark
from .benchmarks.drawn import DrawnBenchmark
from .config import ROOT, Config
from .devices import choose_device, choose_precision, describe
from .distributed import all_gather, rank, world
from .episodes import Batch, EpisodeDataset, shard, test_episodes, test_lists
from .metrics import SegmentationScore
from .model import HSNet
from .runs import WEIGHTS

FEW = 4  # episodes at a time on a CPU: more take memory and gain nothing
Predictor = Callable[[Batch], dict[str, Tensor]]  # masks, bool b h w, by the name that tables show


def choose_workers(workers: int) -> int:
    """Processes that prepare episodes: two beside a GPU or on a large machine, one on a small one."""
    if workers >= 0:
        return workers
    return max(1, min(8, torch.get_num_threads() - 2))


def episodes_at_a_time(config: Config, device: torch.device) -> int:
    """How many episodes are scored together: as many as are trained together, on a CPU few."""
    return config.micro_batch or (min(config.batch, FEW) if device.type == "cpu" else config.batch)


def predictor(
    model: HSNet,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    prototypes: Prototypes | None = None,
    rule: str = "paper",
) -> Predictor:
    """A function from a batch to the masks of the model and, on the same features, of the prototypes (on the CPU).

    The masks have the size of the batch's truth.

    Args:
        rule: how the masks of several supports become one, see `vote`.
    """

    @torch.no_grad()
    def predict(batch: Batch) -> dict[str, Tensor]:
        batch = batch.to(device)
        size = batch.query_mask.shape[-2:]
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            query = model.backbone(model.backbone.normalize(batch.query))
            support = model.backbone(model.backbone.normalize(batch.support.flatten(0, 1)))
            masks = {"HSNet": model.predict_from_features(query, support, batch.support_mask, size, rule)}
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
    own = shard(dataset.episodes, rank(), world())
    dealt = EpisodeDataset(dataset.benchmark, dataset.size, own, original_size=dataset.original_size)
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
    areas = all_gather(areas)
    return {
        name: SegmentationScore.from_rows(
            (episode[name] for episode in areas), class_ids, dataset.benchmark.resample_classes
        )
        for name in areas[0]
    }


def fit_prototypes(model: HSNet, config: Config, benchmark: Benchmark, device: torch.device) -> Prototypes:
    """Choose the prototypes' level and rule on training concepts, as many as validation has, drawn apart from the training's."""
    dataset = EpisodeDataset(
        benchmark,
        config.size,
        fold=config.fold,
        count=config.val_episodes,
        seed=config.seed + 1,
        bad_files=config.bad_files,
    )
    prototypes = Prototypes()
    bar = tqdm(
        dataset.loader(episodes_at_a_time(config, device), choose_workers(config.workers)),
        desc="fitting prototypes",
        unit="batch",
        leave=False,
    )
    with torch.no_grad():
        for batch in bar:
            batch = batch.to(device)
            query = model.backbone(model.backbone.normalize(batch.query))
            support = model.backbone(model.backbone.normalize(batch.support.flatten(0, 1)))
            prototypes.observe(query, support, batch.support_mask, batch.query_mask)
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
    What is not the run's own test goes to another file, see `test_path`: a quick look replaces nothing.
    """
    device = choose_device(config.device)
    model = model.to(device).eval()
    benchmark.check(config.fold, "test")
    learned = predictor(model, device, choose_precision(config.precision, device), prototypes, config.rule)

    def predict(batch):
        return {
            **learned(batch),
            "any object (oracle)": baselines.any_object(batch),
            "all foreground": baselines.all_foreground(batch),
        }

    lists = test_lists(benchmark, fold=config.fold, shot=shot, count=config.test_episodes)
    lists = [episodes[:count] for episodes in lists]
    start = time.perf_counter()
    scores = evaluate(
        predict,
        EpisodeDataset(
            benchmark, config.size, [e for episodes in lists for e in episodes], original_size=original_size
        ),
        benchmark.classes(config.fold, "test"),
        batch=episodes_at_a_time(config, device),
        workers=choose_workers(config.workers),
        title=f"test, {shot}-shot",
    )
    own = Config.load(folder / "config.json")
    result = {
        "benchmark": config.benchmark,
        "fold": config.fold,
        "shot": shot,
        "protocol": benchmark.protocol,
        "rule": config.rule,
        "size": config.size,
        "scored_at": "original size" if original_size else "size",
        "source": benchmark.source(),
        "training": {
            name: getattr(own, name) for name in ("benchmark", "fold", "protocol", "novel_images", "boundary")
        },
        "digest": benchmark.digest(),
        "seconds": round(time.perf_counter() - start, 1),
        "device": describe(device),
        "precision": str(choose_precision(config.precision, device))[6:],
        "parameters": sum(p.numel() for p in model.learned_parameters().values()),
        "torch": torch.__version__,
        **traces(folder),
        "scores": {name: score.summary() for name, score in scores.items()},
        "resample_classes": benchmark.resample_classes,
        "columns": SegmentationScore.COLUMNS,
        "areas": {name: scores[name].rows for name in ("HSNet", "prototypes") if name in scores},
    }
    if prototypes is not None:
        result["prototypes"] = prototypes.rule()
    if checkpoint is not None:
        result |= {"training": checkpoint}
    if len(lists) > 1:
        result["lists"] = [_list_scores(scores["HSNet"], seed, len(lists)) for seed in range(len(lists))]
    if rank() == 0:
        runs.write_json(test_path(folder, config, shot, original_size), result)
    return result


def _list_scores(score, seed, lists):
    """The scores over one of several lists of equal length."""
    each = len(score.rows) // lists
    part = score.part(range(seed * each, (seed + 1) * each))
    return {"seed": seed, "miou": part.miou(), "fb_iou": part.fb_iou(), "episodes": each}


def traces(folder: Path) -> dict[str, str]:
    """By what a score can be traced: the weights' checksum, and the commit of the code, "changed" where it was."""
    found = {}
    if (folder / WEIGHTS).exists():
        found["weights_sha256"] = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    with contextlib.suppress(OSError, subprocess.CalledProcessError):  # no git, or no checkout
        commit, changed = (
            subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
            for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no", "hsnet"])
        )
        found["commit"] = commit + ", changed" * bool(changed)
    return found


def test_path(folder: Path, config: Config, shot: int, original_size: bool = False) -> Path:
    """Where `test_run` writes: `test-<shot>shot.json`; what is not the run's own test has in its name what differs."""
    own = Config.load(folder / "config.json")
    other = "" if own.benchmark == config.benchmark else f"{config.benchmark}-fold{config.fold}-"
    other += "" if own.protocol == config.protocol else f"{config.protocol}-"
    other += "" if own.rule == config.rule else f"{config.rule}-"
    other += "original-" if original_size else ""
    count = "" if own.test_episodes == config.test_episodes else f"-{config.test_episodes}"
    return folder / f"{other}test-{shot}shot{count}.json"


test_run.__test__ = test_path.__test__ = False  # their names make pytest take them for tests


def control_run(model: HSNet, config: Config, benchmark: DrawnBenchmark, folder: Path) -> dict:
    """Does the support decide? Ask test queries for another of their objects, and score what comes against both.

    "another object" is scored against the object that was asked for: it should be as high as the test score. "wrong
    support" scores the same masks against the episode's own target: it must collapse. Writes `controls.json`.
    """
    device = choose_device(config.device)
    predict = predictor(model.to(device).eval(), device, choose_precision(config.precision, device))
    episodes = test_episodes(benchmark, fold=config.fold, shot=1, count=config.test_episodes)
    pairs = [(other, episode) for episode in episodes for other in benchmark.other_questions(episode)]
    asked = EpisodeDataset(benchmark, config.size, [other for other, _ in pairs])
    # Of the episode itself only the query's truth is needed: its query stands in for the supports.
    targets = EpisodeDataset(benchmark, config.size, [replace(e, supports=(e.query,)) for _, e in pairs])
    class_ids = benchmark.classes(config.fold, "test")
    names = ("another object", "wrong support")
    scores = {name: SegmentationScore(class_ids, benchmark.resample_classes) for name in names}
    loaders = [dataset.loader(config.batch, choose_workers(config.workers)) for dataset in (asked, targets)]
    for batch, target in tqdm(
        zip(*loaders, strict=True), total=len(loaders[0]), desc="controls", unit="batch", leave=False
    ):
        masks = predict(batch)["HSNet"]
        scores["another object"].update(masks, batch.query_mask, batch.class_id)
        scores["wrong support"].update(masks, target.query_mask, target.class_id)
    result = {
        "benchmark": config.benchmark,
        "fold": config.fold,
        "shot": 1,
        "size": config.size,
        "digest": benchmark.digest(),
        "scores": {name: score.summary() for name, score in scores.items()},
    }
    runs.write_json(folder / "controls.json", result)
    return result


def draw_episodes(model: HSNet, config: Config, benchmark: Benchmark, path: Path, count: int = 8) -> Path:
    """Draw the first test episodes with the model's predictions."""
    episodes = test_episodes(benchmark, fold=config.fold, shot=1, count=count)
    batches = [*EpisodeDataset(benchmark, config.size, episodes)]
    device = choose_device(config.device)
    predict = predictor(model.to(device).eval(), device)
    prediction = torch.cat(
        [predict(batch)["HSNet"] for batch in batches]
    )  # one at a time: no more memory than training
    names = [benchmark.class_names[episode.class_id] for episode in episodes]
    return figures.save(
        figures.episode_figure(Batch.stack(batches), prediction.numpy(), names, benchmark.attribution), path
    )
