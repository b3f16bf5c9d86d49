"""The rule "mean": scales, prior and thresholds of the mean probability, chosen on validation episodes, stored with the weights."""

import torch

from .averaging import features_of, mean_maps
from .baselines import with_prior
from .benchmarks import Benchmark
from .config import Config
from .devices import choose_precision, computing_in
from .engine import evaluate_run
from .episodes import test_episodes
from .inputs import squeezed_size
from .model import HSNet

THRESHOLDS = tuple(n / 100 for n in range(15, 76, 5))
PRIORS = (0.0, 2.0, 4.0, 6.0, 8.0)
ENLARGED = 1.4  # the second scale of images, where it leaves the squeezed support as many positions as in training


def choose_thresholds(
    model: HSNet, config: Config, benchmark: Benchmark, device: torch.device
) -> tuple[tuple[float, ...], float, tuple[float, float]]:
    """The scales of images, the weight of `with_prior`, and the thresholds of the probability with one support and with five.

    Chosen is the weight with the highest mIoU on the validation episodes (the mean of 1-shot and 5-shot, each with its best
    threshold). The probability is averaged over two scales of the images, which goes beyond the paper as the prior does: the
    larger one resolves smaller objects.
    """
    dtype = choose_precision(config.precision, device)
    enlarged = squeezed_size(round(ENLARGED * config.size)) == squeezed_size(config.size)
    scales = (1.0, ENLARGED) if enlarged else (1.0,)

    @torch.no_grad()
    def predict(batch):
        batch = batch.to(device)
        size = batch.query_mask.shape[-2:]
        with computing_in(dtype, device):
            probability, contrast = mean_maps(model, batch, size, scales, features_of(model, batch))
        cuts = {prior: with_prior(probability, contrast, prior) for prior in PRIORS}
        return {f"{prior} {t}": (cut > t).cpu() for prior, cut in cuts.items() for t in THRESHOLDS}

    miou = []
    for shot in (1, 5):
        count = max(1, 2 * config.val_episodes // (shot + 1))
        episodes = test_episodes(benchmark, fold=config.fold, shot=shot, count=count, split="val")
        scores = evaluate_run(predict, config, benchmark, episodes, f"threshold, {shot}-shot", split="val")
        miou.append({prior: max((scores[f"{prior} {t}"].miou(), t) for t in THRESHOLDS) for prior in PRIORS})
    best = max(PRIORS, key=lambda prior: sum(of_shot[prior][0] for of_shot in miou))
    return scales, best, tuple(of_shot[best][1] for of_shot in miou)
