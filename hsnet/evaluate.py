"""Score a trained run on test episodes, beside baselines on the same episodes.

    python -m hsnet.evaluate                      a table of all runs
    python -m hsnet.evaluate RUN --shot 5         score a run; writes test-5shot.json into its folder
    make evaluate                                 the embedded benchmark's run, 1- and 5-shot
"""

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor
from tqdm import tqdm

from . import baselines, figures, records
from .benchmarks import Benchmark, load_benchmark
from .checkpoints import run_folder
from .config import Config, run_program
from .episodes import Batch, EpisodeDataset, test_episodes
from .metrics import SegmentationScore
from .model import HSNet

Predictor = Callable[[Batch], Bool[Tensor, "b h w"]]


def choose_device(name: str = "auto") -> torch.device:
    """The device called `name`; "auto" takes CUDA, else Apple's MPS, else the CPU.

    Raises:
        ValueError: a device this machine has not.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.zeros(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {name!r} cannot be used ({str(error).splitlines()[0]}): try --device auto") from error


def choose_precision(precision: str, device: torch.device) -> torch.dtype:
    """The dtype of the network's arithmetic; "auto" takes bfloat16 where the hardware computes in it.

    A CPU without such instructions emulates it, hundreds of times slower than float32.
    """
    if precision == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            fast = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return getattr(torch, precision)


def choose_workers(workers: int) -> int:
    """Processes that prepare episodes: two beside a GPU or on a large machine, one on a small one."""
    if workers >= 0:
        return workers
    return max(1, min(8, torch.get_num_threads() - 2))


def predictor(model: HSNet, device: torch.device, dtype: torch.dtype = torch.float32) -> Predictor:
    """A function from a batch to the model's masks (on the CPU)."""

    def predict(batch: Batch) -> Tensor:
        on_device = batch.to(device)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            query, support = model.backbone.normalize(on_device.query), model.backbone.normalize(on_device.support)
            return model.predict(query, support, on_device.support_mask).cpu()

    return predict


def evaluate(
    predictors: dict[str, Predictor], dataset: EpisodeDataset, class_ids: list[int], *, batch: int, workers: int, title: str
) -> dict[str, SegmentationScore]:
    """Score several predictors on the same episodes, each episode read once, with a progress bar."""
    scores = {name: SegmentationScore(class_ids, dataset.benchmark.resample_classes) for name in predictors}
    with tqdm(total=len(dataset), desc=title, unit="episode", leave=False) as bar:
        for episodes in dataset.loader(batch, workers):
            for name, predict in predictors.items():
                scores[name].update(predict(episodes), episodes.query_mask, episodes.class_id, episodes.ignored)
            bar.update(len(episodes.class_id))
            first = next(iter(scores.values()))
            bar.set_postfix(mIoU=f"{first.miou():.1f}")
    return scores


def baseline_predictors() -> dict[str, Predictor]:
    """The baselines of `baselines`, by the names that tables show."""
    return {"all foreground": baselines.all_foreground, "any object (oracle)": baselines.any_object}


def test_run(model: HSNet, config: Config, benchmark: Benchmark, folder: Path, shot: int) -> dict:
    """Score a model and the baselines on the test episodes; write `test-<shot>shot.json` and return its content."""
    device = choose_device(config.device)
    model = model.to(device).eval()
    episodes = test_episodes(benchmark, fold=config.fold, shot=shot, count=config.test_episodes)
    dataset = EpisodeDataset(benchmark, config.size, episodes)
    predictors = {"HSNet": predictor(model, device, choose_precision(config.precision, device)), **baseline_predictors()}
    start = time.perf_counter()
    scores = evaluate(
        predictors,
        dataset,
        benchmark.classes(config.fold, "test"),
        batch=config.batch,
        workers=choose_workers(config.workers),
        title=f"test, {shot}-shot",
    )
    result = {
        "benchmark": config.benchmark,
        "fold": config.fold,
        "shot": shot,
        "protocol": "official",
        "size": config.size,
        "digest": benchmark.digest(),
        "seconds": round(time.perf_counter() - start, 1),
        "device": _describe(device),
        "torch": torch.__version__,
        "scores": {name: score.summary() for name, score in scores.items()},
        "columns": SegmentationScore.COLUMNS,
        "areas": {"HSNet": scores["HSNet"].rows},
    }
    records.write_json(folder / f"test-{shot}shot.json", result)
    return result


test_run.__test__ = False  # its name makes pytest take it for a test


def draw_episodes(model: HSNet, config: Config, benchmark: Benchmark, path: Path, count: int = 8) -> Path:
    """Draw the first test episodes with the model's predictions."""
    episodes = test_episodes(benchmark, fold=config.fold, shot=1, count=count)
    batch = Batch.stack([*EpisodeDataset(benchmark, config.size, episodes)])
    device = choose_device(config.device)
    prediction = predictor(model.to(device).eval(), device)(batch)
    names = [benchmark.class_names[episode.class_id] for episode in episodes]
    return figures.save(figures.episode_figure(batch, prediction.numpy(), names, benchmark.attribution), path)


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m hsnet.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", help="name of a run under data/runs, or its folder; without it, a table of all runs")
    parser.add_argument("--shot", type=int, default=1, help="supports per episode (default: 1)")
    parser.add_argument("--test-episodes", type=int, help="how many episodes (default: as the run was configured)")
    parser.add_argument("--root", help="folder of the benchmark's files (default: as the run was configured)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, … (default: auto)")
    arguments = parser.parse_args()
    if arguments.run is None:
        print(records.runs_table())
        return
    if arguments.shot < 1:
        raise ValueError(f"--shot is {arguments.shot}: an episode needs at least one support")
    folder = run_folder(arguments.run)
    config = Config.load(folder / "config.json")
    config.device = arguments.device
    config.root = arguments.root or config.root
    config.test_episodes = arguments.test_episodes or config.test_episodes
    model = HSNet.from_run(folder)
    benchmark = load_benchmark(config.benchmark, size=config.size, root=config.root)
    result = test_run(model, config, benchmark, folder, arguments.shot)
    print(records.scores_table([result]))
    print(f"written to {folder / f'test-{arguments.shot}shot.json'}")


if __name__ == "__main__":
    run_program(main)
