"""How one false match spreads through three 4D convolutions of each kernel: `PYTHONPATH=book python -m kit.false_match`.

Small networks are trained for it, one squeezing block of the coarsest level with a linear readout, all in the same way.
The result is `data/filtering.json`; it takes about two minutes of one core.
"""

import platform
from functools import partial
from itertools import product
from time import perf_counter

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from hsnet import EpisodeDataset, SeparableConv4d, hypercorrelation_pyramid
from hsnet.backbone import Backbone
from hsnet.config import run_program
from hsnet.conv4d import KERNELS
from hsnet.fast.convolution import over_query, over_support
from hsnet.fast.normalization import GroupNormReLU
from hsnet.metrics import SegmentationScore
from hsnet.paths import ROOT
from hsnet.runs import write_json

from .pages import SIZE, emoji, ladder_episodes, masked_features

CHANNELS = (8, 8, 16)
EPISODES, STEPS, BATCH, LEARNING_RATE, SEEDS = 200, 200, 8, 5e-3, (0, 1)
TESTED = 100  # of the ladder's episodes
COUNTS = (1, 16, 64)  # of false matches


class SeparableBatchNorm(SeparableConv4d):
    """Separable 4D convolution with batch normalisation between its two 2D convolutions, as the paper describes it."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__(in_channels, out_channels, kernel_size, stride)
        self.between = nn.BatchNorm2d(out_channels)

    def forward(self, x: Float[Tensor, "b c hq wq hs ws"]) -> Float[Tensor, "b d hq wq h2 w2"]:
        """Convolve; shapes as in `SeparableConv4d`."""
        x = over_support(lambda planes: self.between(self.support(planes)), x)
        return over_query(self.query, x)


ALL = KERNELS | {"separable, batch normalisation": SeparableBatchNorm}


class SmallNetwork(nn.Module):
    """A squeezing block of one level with few channels, the mean over the support, and a linear readout."""

    def __init__(self, kernel: str, layers: int):
        super().__init__()
        modules = []
        for c_in, c_out in zip((layers, *CHANNELS), CHANNELS, strict=False):
            modules += [ALL[kernel](c_in, c_out, 3, stride=2), GroupNormReLU(4, c_out)]
        self.block, self.readout = nn.Sequential(*modules), nn.Conv2d(CHANNELS[-1], 1, 1)

    def forward(self, x: Float[Tensor, "b l hq wq hs ws"]) -> Float[Tensor, "b hq wq"]:
        """The logit of foreground of each query position."""
        return self.readout(self.block(x).mean(dim=(4, 5)))[:, 0]


@torch.no_grad()
def correlations(dataset: EpisodeDataset) -> dict[str, Tensor]:
    """The coarsest hypercorrelation of each episode, its masks at that level's size and at the image's, and its class."""
    backbone, found = Backbone("efficientnet_lite0").eval(), []
    for batch in tqdm(dataset.loader(batch=BATCH), "correlations", leave=False):
        query, support = (levels[-1:] for levels in masked_features(backbone, batch))
        [x] = hypercorrelation_pyramid(query, support)
        share = partial(F.adaptive_avg_pool2d, output_size=x.shape[2:4])
        objects = share(batch.support_mask.float())[:, 0]
        found.append((x, share(batch.query_mask[:, None].float())[:, 0], objects, batch.query_mask, batch.class_id))
    names = "x", "share", "support_share", "mask", "class_id"
    return dict(zip(names, map(torch.cat, zip(*found, strict=True)), strict=True))


def train(kernel: str, data: dict[str, Tensor], seed: int) -> tuple[SmallNetwork, float]:
    """A network after `STEPS` steps of Adam with a cosine schedule, and the seconds it took."""
    torch.manual_seed(seed)
    network, start = SmallNetwork(kernel, data["x"].shape[1]), perf_counter()
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    for _ in tqdm(range(STEPS), f"{kernel}, seed {seed}", leave=False):
        chosen = torch.randint(len(data["x"]), (BATCH,))
        logits, weight = network(data["x"][chosen]), torch.tensor(2.0)
        loss = F.binary_cross_entropy_with_logits(logits, data["share"][chosen], pos_weight=weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval(), perf_counter() - start


@torch.no_grad()
def logits_of(network: SmallNetwork, x: Tensor) -> Tensor:
    return torch.cat([network(part) for part in x.split(BATCH)])


def with_false_matches(data: dict[str, Tensor], count: int) -> tuple[Tensor, list[tuple[int, int]]]:
    """The correlations with `count` pairs of background and object at 1, in all layers; and the first query position.

    The pairs are drawn once for all networks.
    """
    generator, x, first = torch.Generator().manual_seed(count), data["x"].clone(), []
    for table, background, objects in zip(x, data["share"] == 0, data["support_share"] > 0, strict=True):
        query, support = background.nonzero(), objects.nonzero()
        pairs = torch.randperm(len(query) * len(support), generator=generator)[:count]
        for pair in pairs.tolist():
            (i, j), (m, n) = query[pair // len(support)].tolist(), support[pair % len(support)].tolist()
            table[:, i, j, m, n] = 1
        first.append(tuple(query[pairs[0] // len(support)].tolist()) if len(pairs) else None)
    return x, first


def blank(dataset: EpisodeDataset) -> SegmentationScore:
    """A score of no episodes yet."""
    return SegmentationScore(dataset.benchmark.classes(0, "test"), dataset.benchmark.resample_classes)


def score_of(logits: Tensor, data: dict[str, Tensor], dataset: EpisodeDataset) -> SegmentationScore:
    """The mIoU of the masks where the logit, resized, is positive."""
    score = blank(dataset)
    large = F.interpolate(logits[:, None], SIZE, mode="bilinear", align_corners=True)[:, 0]
    score.update(large > 0, data["mask"], data["class_id"])
    return score


def spread(before: Tensor, after: Tensor, places: list[tuple[int, int]]) -> dict[str, float]:
    """What one false match changes, in standard deviations of the logits of its episode, mean over the episodes."""
    rows = []
    for old, new, place in zip(before, after, places, strict=True):
        if place is not None:
            change = (new - old).abs() / old.std()
            at, others = change[place], change.sum() - change[place]
            reached = (change > 0.1).sum()
            rows.append([at, others / (change.numel() - 1), reached, ((new > 0) != (old > 0)).sum()])
    names = "at the position", "elsewhere, mean", "positions above 0.1", "decisions changed"
    return dict(zip(names, torch.tensor(rows).double().mean(0).tolist(), strict=True))


def measure(kernel: str, seed: int, training: dict, test: dict, dataset: EpisodeDataset) -> tuple[dict, dict]:
    """Train one network: a row for the file, and its scores by the number of false matches."""
    network, seconds = train(kernel, training, seed)
    before = logits_of(network, test["x"])
    row = {"kernel": kernel, "seed": seed, "seconds": round(seconds, 1)}
    row["weights"] = sum(p.numel() for p in network.block.parameters())
    scores = {0: score_of(before, test, dataset)}
    for count in COUNTS:
        x, first = with_false_matches(test, count)
        after = logits_of(network, x)
        scores[count] = score_of(after, test, dataset)
        if count == 1:
            row["one false match"] = spread(before, after, first)
    return row | {"miou": {count: score.miou() for count, score in scores.items()}}, scores


def above(score: SegmentationScore, other: SegmentationScore) -> list[float]:
    """Difference of mIoU in points, and its paired 95 % interval."""
    return [score.miou() - other.miou(), *score.interval_above(other)]


def main() -> None:
    """The program."""
    benchmark = emoji()
    dataset = EpisodeDataset(benchmark, SIZE, ladder_episodes(benchmark).episodes[:TESTED])
    training = correlations(EpisodeDataset(benchmark, SIZE, fold=0, count=EPISODES, seed=2))
    test = correlations(dataset)
    rows, pooled = [], {}  # the areas of a kernel's seeds, by the number of false matches
    for seed, kernel in product(SEEDS, ALL):
        row, scores = measure(kernel, seed, training, test, dataset)
        rows.append(row)
        for count, score in scores.items():
            pooled.setdefault(kernel, {}).setdefault(count, blank(dataset)).extend(score.rows)
    kernels = {
        kernel: {
            "miou": scores[0].miou(),
            "interval": list(scores[0].interval()),
            "minus center-pivot": above(scores[0], pooled["center-pivot"][0]),
            "change by false matches": {count: above(scores[count], scores[0]) for count in COUNTS},
        }
        for kernel, scores in pooled.items()
    }
    settings = {"size": SIZE, "level": "coarsest", "channels": list(CHANNELS), "episodes": EPISODES, "steps": STEPS}
    settings |= {"batch": BATCH, "learning_rate": LEARNING_RATE, "test_episodes": len(dataset)}
    where = {"digest": benchmark.digest(), "torch": torch.__version__, "machine": platform.machine()}
    write_json(ROOT / "data" / "filtering.json", {**settings, **where, "kernels": kernels, "networks": rows})
    print(f"written to {ROOT / 'data' / 'filtering.json'}")


if __name__ == "__main__":
    run_program(main)
