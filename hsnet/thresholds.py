"""The threshold of the supports' mean probability: chosen on validation episodes, stored with the weights."""

import torch

from .benchmarks import Benchmark
from .config import Config
from .devices import choose_precision, computing_in
from .engine import evaluate_run, features_of, mean_probability
from .episodes import test_episodes
from .model import HSNet

THRESHOLDS = tuple(n / 100 for n in range(15, 76, 5))


def choose_thresholds(model: HSNet, config: Config, benchmark: Benchmark, device: torch.device) -> tuple[float, float]:
    """The thresholds of `mean_probability` with the best mIoU on the validation episodes: with one support, with five."""
    dtype = choose_precision(config.precision, device)

    @torch.no_grad()
    def predict(batch):
        batch = batch.to(device)
        with computing_in(dtype, device):
            probability = mean_probability(
                model, *features_of(model, batch), batch.support_mask, batch.query_mask.shape[-2:]
            )
        return {f"{threshold:.2f}": (probability > threshold).cpu() for threshold in THRESHOLDS}

    chosen = []
    for shot in (1, 5):
        count = max(1, 2 * config.val_episodes // (shot + 1))
        episodes = test_episodes(benchmark, fold=config.fold, shot=shot, count=count, split="val")
        scores = evaluate_run(predict, config, benchmark, episodes, f"threshold, {shot}-shot", split="val")
        chosen.append(float(max(scores, key=lambda threshold: scores[threshold].miou())))
    return tuple(chosen)
