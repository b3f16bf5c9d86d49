"""What chapters 6 to 9 share: center-pivot kernels as dense ones, the tensors behind each trained 4D convolution, and a
linear probe that reads them.
"""

from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from hsnet import CenterPivotConv4d, HSNet
from hsnet.benchmarks import Benchmark
from hsnet.episodes import Batch, EpisodeDataset
from hsnet.fast.correlation import correlate_and_convolve, cut_supports, unit_levels
from hsnet.metrics import SegmentationScore

from .figures import heat, panels
from .pages import SIZE, as_image, ladder_episodes, rung

PENALTIES = (0.0001, 0.01, 1.0)
THRESHOLDS = torch.linspace(0.1, 0.5, 9)
TRAINING = 40  # episodes that a probe is fitted on


def as_dense(conv: CenterPivotConv4d) -> tuple[Float[Tensor, "d c k k k k"], Float[Tensor, " d"]]:
    """The weight and bias of the dense kernel that equals a `CenterPivotConv4d`: zero but at the pivots.

    Both halves read the centre, so the dense kernel carries the sum of their weights there.
    """
    k, centre = conv.kernel_size, conv.kernel_size // 2
    weight = conv.query.weight.new_zeros(conv.out_channels, conv.in_channels, k, k, k, k)
    weight[..., centre, centre] += conv.query.weight
    weight[:, :, centre, centre] += conv.support.weight
    return weight, conv.query.bias + conv.support.bias


@torch.no_grad()
def trained_layers(model: HSNet, batch: Batch, count: int = 3) -> list[list[Float[Tensor, "b _c _hq _wq _hs _ws"]]]:
    """The tensors after each of the first convolutions of the trained squeezing blocks, with normalisation and ReLU.

    Returns:
        `count` lists, each with one tensor a level, fine to coarse.
    """
    query, support = (model.backbone(model.backbone.normalize(x)) for x in (batch.query, batch.support[:, 0]))
    found = [[] for _ in range(count)]
    supports = cut_supports(model, support, batch.support_mask[:, 0])
    for block, one_query, one_support in zip(model.encoder.squeezing, unit_levels(query), supports, strict=True):
        x = block.layers[1](correlate_and_convolve(block.layers[0], one_query, one_support))
        found[0].append(x)
        for i in range(1, count):
            x = block.layers[3 * i : 3 * i + 2](x)
            found[i].append(x)
    return found


def over_levels(tensors: list[Float[Tensor, "b _c _hq _wq _hs _ws"]]) -> Float[Tensor, "b c hq wq"]:
    """The mean of each channel over the support, all levels stacked at the finest one's query size."""
    means = [x.mean(dim=(4, 5)) for x in tensors]
    size = means[0].shape[2:]
    return torch.cat([F.interpolate(x, size, mode="bilinear", align_corners=True) for x in means], dim=1)


def true_and_false_match(x: Float[Tensor, "1 l hq wq hs ws"], batch: Batch) -> tuple[tuple[int, int], tuple[int, int]]:
    """The query positions (row, column) whose best match, mean of the layers, is strongest: on the object, and off it."""
    best = x[0].mean(0).flatten(2).amax(2)  # hq wq
    share = F.adaptive_avg_pool2d(batch.query_mask[:, None].float(), best.shape)[0, 0]
    true, false = ((best * where).argmax().item() for where in (share > 0.5, share == 0))
    return divmod(true, best.shape[1]), divmod(false, best.shape[1])


def match_slices(
    batch: Batch, positions: tuple[tuple[int, int], ...], x: Float[Tensor, "1 c hq wq hs ws"], weights: Tensor
) -> plt.Figure:
    """For each query position the mean over the support, and the support's slice; channels are summed with `weights`."""
    values = torch.einsum("cijmn,c->ijmn", x[0], weights).relu()
    query, support = as_image(batch.query[0]), as_image(batch.support[0, 0])
    largest, pictures, marks = max(values[place].max().item() for place in positions), [], {}
    for name, (row, column) in zip(("true match", "false match"), positions, strict=True):
        marks[len(pictures)] = ((column + 0.5) * SIZE / x.shape[3], (row + 0.5) * SIZE / x.shape[2])
        pictures.append((f"query, {name}", heat(query, values.mean((2, 3)).numpy())))
        pictures.append((f"support, {name}", heat(support, values[row, column].numpy(), largest)))
    return panels(pictures, marks)


class Probe:
    """A weighted sum of channels that predicts the share of foreground at each query position: ridge regression.

    Penalty and threshold are chosen by mean IoU; each half of the episodes is scored by a probe of the other half.

    Args:
        x: b c hq wq, the channels of training episodes.
        masks: b h w, the true masks.
    """

    def __init__(self, x: Float[Tensor, "b c hq wq"], masks: Bool[Tensor, "b h w"]):
        half, self.iou = len(x) // 2, -1.0
        first, second = slice(0, half), slice(half, len(x))
        for penalty in PENALTIES:
            scores = torch.zeros(len(THRESHOLDS))
            for fitted, scored in ((first, second), (second, first)):
                self._fit(x[fitted], masks[fitted], penalty)
                found = self.values(x[scored]) > THRESHOLDS.view(-1, 1, 1, 1)  # threshold b h w
                both, either = found & masks[scored], found | masks[scored]
                scores += 50 * (both.sum((2, 3)) / either.sum((2, 3))).mean(1)
            if scores.max() > self.iou:
                self.iou, self.threshold, chosen = scores.max().item(), THRESHOLDS[scores.argmax()], penalty
        self._fit(x, masks, chosen)

    def _fit(self, x, masks, penalty):
        share = F.adaptive_avg_pool2d(masks[:, None].float(), x.shape[2:])
        rows, target = x.movedim(1, -1).flatten(0, 2), share.flatten()
        mean = rows.mean(0)
        covariance = (rows - mean).T @ (rows - mean) / len(rows) + penalty * torch.eye(len(mean))
        self.weights = torch.linalg.solve(covariance, (rows - mean).T @ (target - target.mean()) / len(rows))
        self.offset = target.mean() - mean @ self.weights

    def values(self, x: Float[Tensor, "b c hq wq"]) -> Float[Tensor, "b h w"]:
        """The predicted share of foreground, at the size of the pages."""
        small = torch.einsum("bchw,c->bhw", x, self.weights) + self.offset
        return F.interpolate(small[:, None], SIZE, mode="bilinear", align_corners=True)[:, 0]

    def masks(self, x: Float[Tensor, "b c hq wq"]) -> Bool[Tensor, "b h w"]:
        """Where the predicted share is above the threshold."""
        return self.values(x) > self.threshold


def collect(stages: Callable[[Batch], dict[str, Tensor]], dataset: EpisodeDataset) -> tuple[dict[str, Tensor], Tensor]:
    """What `stages` returns for the episodes, and their true masks.

    In float32 everywhere: with bfloat16, which many processors lack, a `Probe` may choose another threshold.
    """
    batches = [(stages(batch), batch.query_mask) for batch in dataset.loader(batch=8)]
    names = batches[0][0]
    return {name: torch.cat([x[name] for x, _ in batches]) for name in names}, torch.cat([m for _, m in batches])


def probe_stages(stages: Callable[[Batch], dict[str, Tensor]], benchmark: Benchmark) -> tuple[dict, dict]:
    """Fit a `Probe` to each stage on `TRAINING` episodes of training concepts, and score it on the ladder's.

    Args:
        stages: from a batch to b c hq wq by name.

    Returns:
        The probes and their scores, by name.
    """
    x, masks = collect(stages, EpisodeDataset(benchmark, SIZE, fold=0, count=TRAINING, seed=1))
    probes = {name: Probe(x[name], masks) for name in x}
    scores = {name: SegmentationScore(benchmark.classes(0, "test"), benchmark.resample_classes) for name in x}
    for batch in ladder_episodes(benchmark).loader(batch=8):
        for name, found in stages(batch).items():
            scores[name].update(probes[name].masks(found), batch.query_mask, batch.class_id)
    return probes, scores


def rungs(chapter: int, scores: dict[str, SegmentationScore]) -> dict[str, tuple[float, tuple[float, float]]]:
    """`pages.rung` for several scores of one chapter: all bars, the trained network's last."""
    bars = {}
    for name, score in scores.items():
        bars |= rung(chapter, name, score)
    bars["HSNet, trained"] = bars.pop("HSNet, trained")
    return bars
