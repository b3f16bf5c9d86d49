"""The rule "mean": prior and thresholds of the mean probability, chosen on validation episodes, stored with the weights."""

import torch

from .averaging import mean_maps, prepare_supports
from .baselines import with_prior
from .benchmarks import Benchmark
from .config import Config
from .devices import choose_precision, computing_in
from .engine import evaluate_run
from .episodes import test_episodes
from .model import HSNet
from .windows import DETAIL

THRESHOLDS = tuple(n / 100 for n in range(15, 76, 5))
PRIORS = (0.0, 4.0, 6.0, 8.0, 10.0, 12.0)


def choose_thresholds(
    model: HSNet, config: Config, benchmark: Benchmark, device: torch.device
) -> tuple[float, tuple[float, float]]:
    """The weight of `with_prior`, and the thresholds of the probability with one support and with five.

    Chosen is the weight with the highest mIoU on the validation episodes (the mean of 1-shot and 5-shot, each with its best
    threshold), as the model zooms.
    """
    dtype = choose_precision(config.precision, device)

    @torch.no_grad()
    def predict(batch):
        batch = batch.to(device)
        torch.compiler.cudagraph_mark_step_begin()
        with computing_in(dtype, device):
            supports = prepare_supports(model, batch.support, batch.support_mask, config.size, model.zoom)
            maps, contrast = mean_maps(model, batch.query, supports, batch.query_mask.shape[-2:], model.zoom)
        cuts = {prior: with_prior(maps.mean(dim=1), contrast, prior) for prior in PRIORS}
        return {f"{prior} {t}": (cut > t).cpu() for prior, cut in cuts.items() for t in THRESHOLDS}

    miou, shown = [], {"split": "val", "detail": DETAIL if model.zoom else 1}
    for shot in (1, 5):
        count = max(1, 2 * config.val_episodes // (shot + 1))
        episodes = test_episodes(benchmark, fold=config.fold, shot=shot, count=count, split="val")
        scores = evaluate_run(predict, config, benchmark, episodes, f"threshold, {shot}-shot", **shown)
        miou.append({prior: max((scores[f"{prior} {t}"].miou(), t) for t in THRESHOLDS) for prior in PRIORS})
    best = max(PRIORS, key=lambda prior: sum(of_shot[prior][0] for of_shot in miou))
    return best, tuple(of_shot[best][1] for of_shot in miou)
