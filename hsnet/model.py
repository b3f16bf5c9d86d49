"""HSNet: the figure of the paper, box by box.

query, support ─ Backbone ─ mask_features ─ hypercorrelation_pyramid ─ PyramidEncoder ─ ContextDecoder ─ logits
                                                                        squeezing, mixing
"""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from . import fast
from .backbone import Backbone
from .conv4d import KERNELS, over_query, over_support
from .correlation import hypercorrelation_pyramid, mask_features
from .fast.correlation import cut_supports, encode, unit_levels
from .fast.normalization import GroupNormReLU
from .inputs import check_inputs
from .reference import load_reference
from .runs import load_model

# The whole table of sizes. A squeezing block has three 4D convolutions with these output channels; the finer a level,
# the larger its kernels and strides, so that the support dims of every level shrink to the same few positions.
CHANNELS = (16, 64, 128)
SQUEEZING = {  # (kernel_size, stride) of the three convolutions, by level; with fewer levels, the coarsest ones
    0: ((5, 4), (5, 4), (3, 2)),
    1: ((5, 4), (3, 2), (3, 2)),
    2: ((3, 2), (3, 2), (3, 2)),
}
MIXING = ((3, 1), (3, 1), (3, 1))
SETTINGS = ("backbone", "kernel", "mask_support", "layers", "levels", "convolutions", "train_backbone")
GROUPS = 4  # of every group normalisation
VOTE_RULES = ("paper", "majority")
Levels = list[list[Float[Tensor, "_b _c _h _w"]]]  # features by level, fine to coarse, and layer, shallow to deep
Masks = Bool[Tensor, "b k H W"] | Float[Tensor, "b k H W"]


def _convolutions(kernel: str, in_channels: int, channels: tuple[int, ...], sizes) -> nn.Sequential:
    """4D convolution, then group normalisation with ReLU, for each (kernel_size, stride) of `sizes`."""
    modules = []
    for out_channels, (kernel_size, stride) in zip(channels, sizes, strict=True):
        modules += [
            KERNELS[kernel](in_channels, out_channels, kernel_size, stride),
            GroupNormReLU(GROUPS, out_channels),
            nn.Identity(),  # in checkpoints, the authors' among them, the ReLU takes a number of its own
        ]
        in_channels = out_channels
    return nn.Sequential(*modules)


class SqueezingBlock(nn.Module):
    """f^sqz of one level: from L stacked correlations to 128 channels, the support dims shrunk to (nearly) nothing."""

    def __init__(self, in_channels: int, level: int, kernel: str = "center-pivot", convolutions: int = 3):
        """`level` is the row of `SQUEEZING`: 0 (the finest of three levels), 1 or 2 (the coarsest)."""
        super().__init__()
        kept, left_out = SQUEEZING[level][:convolutions], SQUEEZING[level][convolutions:]
        self.layers = _convolutions(kernel, in_channels, (*CHANNELS[: len(kept) - 1], CHANNELS[-1]), kept)
        # What convolutions that are left out would have shrunk the support by: it is averaged instead.
        self.pool = math.prod(stride for _, stride in left_out)

    def forward(self, x: Float[Tensor, "b l hq wq hs ws"]) -> Float[Tensor, "b 128 hq wq h2 w2"]:
        """Squeeze one hypercorrelation."""
        return self.after_first(self.layers[0](x))

    def after_first(self, x: Float[Tensor, "b _c hq wq _hs _ws"]) -> Float[Tensor, "b 128 hq wq h2 w2"]:
        """What follows the first convolution, whose result may be overwritten."""
        x = self.layers[1:](x)
        return over_support(partial(F.avg_pool2d, kernel_size=self.pool, ceil_mode=True), x) if self.pool > 1 else x


class MixingBlock(nn.Module):
    """f^mix: bring the coarser level to the finer one's query size, add, and convolve."""

    def __init__(self, kernel: str = "center-pivot", convolutions: int = 3):
        super().__init__()
        self.layers = _convolutions(kernel, CHANNELS[-1], (CHANNELS[-1],) * convolutions, MIXING[:convolutions])

    def forward(
        self, fine: Float[Tensor, "b 128 hq wq hs ws"], coarse: Float[Tensor, "b 128 _hq _wq _hs _ws"]
    ) -> Float[Tensor, "b 128 hq wq hs ws"]:
        """Mix two neighbouring levels of the pyramid."""
        coarse = over_query(partial(resize, size=fine.shape[2:4]), coarse)
        # Backbones that round sizes down (VGG-16) can squeeze two levels to different supports: never broadcast.
        if coarse.shape[4:] != fine.shape[4:]:
            coarse = over_support(partial(resize, size=fine.shape[4:]), coarse)
        return self.layers(fine + coarse)


def resize(x: Float[Tensor, "n c _h _w"], size: tuple[int, int]) -> Float[Tensor, "n c h w"]:
    """Bilinear resize with aligned corners, as everywhere in the reference."""
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)


class PyramidEncoder(nn.Module):
    """Squeeze every level, then mix them from coarse to fine, then average over the squeezed support dims.

    Args:
        channels: layers per level, fine to coarse.
        kernel: a key of `conv4d.KERNELS`.
        convolutions: how many each block has, 1 to 3.
    """

    def __init__(self, channels: tuple[int, ...], kernel: str = "center-pivot", convolutions: int = 3):
        super().__init__()
        self.squeezing = nn.ModuleList(  # fine to coarse, as every list of levels
            SqueezingBlock(c, i, kernel, convolutions) for i, c in enumerate(channels, len(SQUEEZING) - len(channels))
        )
        # [i] mixes level i + 1 into level i
        self.mixing = nn.ModuleList(MixingBlock(kernel, convolutions) for _ in channels[1:])
        self.recompute = False  # activation checkpointing of the squeezing blocks: less memory, more time

    def forward(self, pyramid: list[Float[Tensor, "b _l _hq _wq _hs _ws"]]) -> Float[Tensor, "b 128 hq wq"]:
        """The context: one vector for each query position of the finest level."""
        return self.mix([self.squeeze(block, x) for block, x in zip(self.squeezing, pyramid, strict=True)])

    def squeeze(self, block, *inputs) -> Float[Tensor, "b 128 hq wq h2 w2"]:
        """`block(*inputs)`; with `recompute`, its activations are computed again for the gradients."""
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def mix(self, squeezed: list[Float[Tensor, "b 128 _hq _wq _hs _ws"]]) -> Float[Tensor, "b 128 hq wq"]:
        """Mix the squeezed levels from coarse to fine, and average over the support dims. The list is used up."""
        mixed = squeezed.pop()  # b 128 hq wq 2 2 at 400 px
        for block in reversed(self.mixing):
            mixed = block(squeezed.pop(), mixed)
        return mixed.mean(dim=(4, 5))  # b 128 hq wq


class ContextDecoder(nn.Module):
    """From context to two logits (background, foreground), at twice the context's size."""

    def __init__(self):
        super().__init__()
        relu = partial(nn.ReLU, inplace=True)
        self.before = nn.Sequential(nn.Conv2d(128, 128, 3, padding=1), relu(), nn.Conv2d(128, 64, 3, padding=1), relu())
        self.after = nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), relu(), nn.Conv2d(64, 2, 3, padding=1))

    def forward(self, context: Float[Tensor, "b 128 hq wq"]) -> Float[Tensor, "b 2 h w"]:
        """Decode; h = 2 hq, w = 2 wq."""
        x = self.before(context)  # b 64 hq wq
        x = resize(x, (2 * x.shape[2], 2 * x.shape[3]))  # b 64 2hq 2wq
        return self.after(x)  # b 2 2hq 2wq


class HSNet(nn.Module):
    """Hypercorrelation Squeeze Network (Min, Kang, Cho, ICCV 2021).

    Args:
        backbone: "vgg16", "resnet50", "resnet101", "efficientnet_lite0", or "timm:NAME".
        pretrained: load the backbone's ImageNet weights.
        kernel: "center-pivot" (the paper's), "separable" or "dense".
        mask_support: multiply the support's features by its mask, equation (1) of the paper. False is the paper's ablation, in
            which the support's background is compared as well.
        layers, levels: which features are correlated, see `backbone.pyramid_layers`.
        convolutions: 4D convolutions in each squeezing and mixing block, 1 to 3 (the paper's ablation, which does not
            state the strides: here the first convolutions remain, and average pooling replaces the other strides).
        train_backbone: train the backbone as well (an ablation of the paper, which over-fits).

    Raises:
        ValueError: an unknown value of a setting, with the choices.
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        *,
        pretrained: bool = True,
        kernel: str = "center-pivot",
        mask_support: bool = True,
        layers: str = "all",
        levels: int = 3,
        convolutions: int = 3,
        train_backbone: bool = False,
    ):
        super().__init__()
        if kernel not in KERNELS:
            raise ValueError(f"unknown kernel {kernel!r}: choose one of {', '.join(KERNELS)}")
        if convolutions not in range(1, len(CHANNELS) + 1):
            raise ValueError(f"convolutions is {convolutions!r}: choose 1 to {len(CHANNELS)} of them for each block")
        values = backbone, kernel, mask_support, layers, levels, convolutions, train_backbone
        self.settings = dict(zip(SETTINGS, values, strict=True))
        self.training_size: int | None = None  # image side it was trained at; stored with the weights
        self.thresholds, self.prior, self.zoom = (0.5, 0.5), 0.0, False  # of the rule "mean"; stored too
        self.backbone = Backbone(
            backbone, pretrained=pretrained, layers=layers, levels=levels, trainable=train_backbone
        )
        self.encoder = PyramidEncoder(tuple(map(len, self.backbone.layers)), kernel, convolutions)
        self.decoder = ContextDecoder()

    def forward(
        self,
        query: Float[Tensor, "b 3 h w"],
        support: Float[Tensor, "b 3 hs ws"],
        support_mask: Bool[Tensor, "b hs ws"] | Float[Tensor, "b hs ws"],
    ) -> Float[Tensor, "b 2 h w"]:
        """Logits (background, foreground) of each query pixel, from one support each.

        Args:
            query, support: images as `backbone.normalize` returns them; they may differ in height and width.
            support_mask: True or 1 on the object, of the support's height and width.

        Raises:
            ValueError: a wrong rank or size, or on a CPU an image with NaN or infinity, naming it.
        """
        check_inputs(self, query, support, support_mask, shots=False)
        if fast.applies(self, query.shape, support.shape):  # the next four steps in less time and memory
            supports = cut_supports(self, self.backbone(support), support_mask)
            context = encode(self.encoder, unit_levels(self.backbone(query)), supports)
        else:
            query_levels, support_levels = fast.features_of(self.backbone, query, support)  # by level: b c h w
            if self.settings["mask_support"]:
                support_levels = mask_features(support_levels, support_mask)  # the same shapes
            pyramid = hypercorrelation_pyramid(query_levels, support_levels)  # by level: b l hq wq hs ws
            context = self.encoder(pyramid)  # b 128 hq wq
        logits = self.decoder(context)  # b 2 2hq 2wq
        return resize(logits, query.shape[-2:])  # b 2 h w; the reference takes the support's size

    @torch.no_grad()
    def predict(
        self,
        query: Float[Tensor, "b 3 h w"],
        support: Float[Tensor, "b k 3 hs ws"],
        support_mask: Bool[Tensor, "b k hs ws"] | Float[Tensor, "b k hs ws"],
        rule: str = "paper",
    ) -> Bool[Tensor, "b h w"]:
        """The mask of each query from K supports, by `vote`. Each image passes the backbone once. Raises as `forward` does."""
        check_inputs(self, query, support, support_mask, shots=True)
        query_levels, support_levels = fast.features_of(self.backbone, query, support.flatten(0, 1))
        return self.predict_from_features(query_levels, support_levels, support_mask, query.shape[-2:], rule)

    @torch.no_grad()
    def predict_from_features(
        self,
        query_levels: Levels,
        support_levels: Levels,
        support_mask: Masks,
        size: tuple[int, int],
        rule: str = "paper",
    ) -> Bool[Tensor, "b h w"]:
        """`predict` from features: those of `backbone(query)`, and those of the b·k supports in one batch.

        Args:
            size: height and width of the masks returned.
        """
        logits = self.logits_from_features(query_levels, support_levels, support_mask, size)
        return vote(torch.stack([one[:, 1] > one[:, 0] for one in logits], dim=1), rule)

    def logits_from_features(
        self, query_levels: Levels, support_levels: Levels, support_mask: Masks, size: tuple[int, int]
    ) -> Iterator[Float[Tensor, "b 2 h w"]]:
        """The logits from each of the K supports, one after the other, in the memory of one pass."""
        fused = fast.applies(self, query_levels[0][0].shape, support_levels[0][0].shape, stride=1)
        query_levels = unit_levels([list(level) for level in query_levels]) if fused else query_levels
        for k in range(support_mask.shape[1]):
            levels = [[f.unflatten(0, support_mask.shape[:2])[:, k] for f in level] for level in support_levels]
            if fused:
                context = encode(self.encoder, query_levels, cut_supports(self, levels, support_mask[:, k]))
            else:
                levels = mask_features(levels, support_mask[:, k]) if self.settings["mask_support"] else levels
                context = self.encoder(hypercorrelation_pyramid(query_levels, levels))
            yield resize(self.decoder(context), size)

    def learned_parameters(self) -> dict[str, nn.Parameter]:
        """The parameters that training changes, by name: encoder and decoder, and the backbone with `train_backbone`."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def load_reference_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Load a checkpoint of the authors' implementation; see `reference.load_reference`."""
        load_reference(self, state_dict)

    @classmethod
    def from_run(cls, run: str | Path) -> "HSNet":
        """The trained model of a run: its name under `data/runs`, or its folder; raises as `runs.load_model` does."""
        return load_model(run, cls)


def vote(masks: Bool[Tensor, "b k h w"], rule: str = "paper") -> Bool[Tensor, "b h w"]:
    """One mask from the masks of K supports.

    Args:
        masks: the prediction from each support.
        rule: "paper": foreground where the votes of a pixel are at least half of the image's largest number of votes
            (so with at most 2 of 5 votes anywhere, one is enough); "majority": at least half of K.

    Raises:
        ValueError: another rule.
    """
    if rule not in VOTE_RULES:
        raise ValueError(f"unknown vote rule {rule!r}: choose one of {', '.join(VOTE_RULES)}")
    votes = masks.sum(dim=1)  # b h w
    largest = votes.amax(dim=(1, 2), keepdim=True).clamp(min=1) if rule == "paper" else masks.shape[1]
    return 2 * votes >= largest
