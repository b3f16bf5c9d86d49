"""HSNet: the figure of the paper, box by box.

query, support ─ Backbone ─ mask_features ─ hypercorrelation_pyramid ─ PyramidEncoder ─ ContextDecoder ─ logits
                                                                        squeezing, mixing
"""

import math
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from .backbone import Backbone, pyramid_layers
from .conv4d import KERNELS, over_query, over_support
from .correlation import hypercorrelation_pyramid, mask_features, unit_vectors
from .fast.correlation import SupportLevel, correlate_and_convolve, cut
from .fast.normalization import GroupNorm
from .reference import BACKBONE, from_reference
from .runs import load_model

# The whole table of sizes. A squeezing block has three 4D convolutions with these output channels; the finer a level,
# the larger its kernels and strides, so that the support dims of every level shrink to the same few positions.
CHANNELS = (16, 64, 128)
SQUEEZING = {  # (kernel_size, stride) of the three convolutions, by levels counted from the coarsest
    0: ((3, 2), (3, 2), (3, 2)),
    1: ((5, 4), (3, 2), (3, 2)),
    2: ((5, 4), (5, 4), (3, 2)),
}
MIXING = ((3, 1), (3, 1), (3, 1))
GROUPS = 4  # of every group normalisation

WHOLE = 1 / 32  # of a GPU's memory, that the finest hypercorrelation of a batch may take

VOTE_RULES = ("paper", "majority")


def _convolutions(kernel: str, in_channels: int, channels: tuple[int, ...], sizes) -> nn.Sequential:
    """4D convolution, group normalisation, ReLU, for each (kernel_size, stride) of `sizes`."""
    modules = []
    for out_channels, (kernel_size, stride) in zip(channels, sizes, strict=True):
        modules += [
            KERNELS[kernel](in_channels, out_channels, kernel_size, stride),
            GroupNorm(GROUPS, out_channels),
            nn.ReLU(inplace=True),
        ]
        in_channels = out_channels
    return nn.Sequential(*modules)


class SqueezingBlock(nn.Module):
    """f^sqz of one level: from L stacked correlations to 128 channels, the support dims shrunk to (nearly) nothing."""

    def __init__(self, in_channels: int, level: int, kernel: str = "center-pivot", convolutions: int = 3):
        """`level` counts from the coarsest: 0, 1 or 2, and chooses the row of `SQUEEZING`."""
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
        x = _run(self.layers[1:], x)
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
        coarse = over_query(_resize(fine.shape[2:4]), coarse)
        # Backbones that round sizes down (VGG-16) can squeeze two levels to different supports: never broadcast.
        if coarse.shape[4:] != fine.shape[4:]:
            coarse = over_support(_resize(fine.shape[4:]), coarse)
        return _run(self.layers, fine + coarse)


def _run(layers, x):
    """The layers one after the other; normalisation and ReLU at once and in place where no gradient needs the values."""
    for layer in layers:
        if torch.is_grad_enabled() or not isinstance(layer, GroupNorm | nn.ReLU):
            x = layer(x)
        elif isinstance(layer, GroupNorm):
            x = layer.forward_(x)  # with the ReLU that follows
    return x


def _resize(size):
    """Bilinear resize with aligned corners, as everywhere in the reference."""
    return partial(F.interpolate, size=tuple(size), mode="bilinear", align_corners=True)


class PyramidEncoder(nn.Module):
    """Squeeze every level, then mix them from coarse to fine, then average over what is left of the support.

    Args:
        channels: layers per level, fine to coarse.
        kernel: a key of `conv4d.KERNELS`.
        convolutions: how many each block has, 1 to 3.
    """

    def __init__(self, channels: tuple[int, ...], kernel: str = "center-pivot", convolutions: int = 3):
        super().__init__()
        self.squeezing = nn.ModuleList(  # fine to coarse, as every list of levels
            SqueezingBlock(c, len(channels) - 1 - i, kernel, convolutions) for i, c in enumerate(channels)
        )
        # [i] mixes level i + 1 into level i
        self.mixing = nn.ModuleList(MixingBlock(kernel, convolutions) for _ in channels[1:])
        self.recompute = False  # squeeze a second time for the gradients, rather than keep what they need: less memory

    def forward(self, pyramid: list[Float[Tensor, "b _l _hq _wq _hs _ws"]]) -> Float[Tensor, "b 128 hq wq"]:
        """The context: one vector for each query position of the finest level."""
        return self.mix([self._squeeze(block, x) for block, x in zip(self.squeezing, pyramid, strict=True)])

    def from_features(
        self, query_levels: list[list[Float[Tensor, "b _c _hq _wq"]]], supports: list[list[SupportLevel]]
    ) -> Float[Tensor, "b 128 hq wq"]:
        """The context without the pyramid: see `fused`. For frozen features and center-pivot kernels.

        Args:
            query_levels: unit vectors.
            supports: per level, one of `fused.cut` for each item of the batch.
        """
        squeezed = []
        for block, query, support in zip(self.squeezing, query_levels, supports, strict=True):

            def squeeze(query, support, block=block):
                first = correlate_and_convolve(block.layers[0], query, support, keep=not self.recompute)
                return block.after_first(first)

            squeezed.append(self._squeeze(squeeze, query, support))
        return self.mix(squeezed)

    def _squeeze(self, squeeze, *inputs):
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(squeeze, *inputs, use_reentrant=False)
        return squeeze(*inputs)

    def mix(self, squeezed: list[Float[Tensor, "b 128 _hq _wq _hs _ws"]]) -> Float[Tensor, "b 128 hq wq"]:
        """Mix the squeezed levels from coarse to fine, and average over the support dims. The list is used up."""
        mixed = squeezed.pop()
        for block in reversed(self.mixing):
            mixed = block(squeezed.pop(), mixed)
        return mixed.mean(dim=(4, 5))


class ContextDecoder(nn.Module):
    """From context to two logits (background, foreground), at twice the context's size."""

    def __init__(self):
        super().__init__()
        self.before = nn.Sequential(
            nn.Conv2d(128, 128, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(128, 64, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.after = nn.Sequential(
            nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(64, 2, 3, padding=1)
        )

    def forward(self, context: Float[Tensor, "b 128 hq wq"]) -> Float[Tensor, "b 2 h w"]:
        """Decode; h = 2 hq, w = 2 wq."""
        x = self.before(context)
        return self.after(_resize((2 * x.shape[2], 2 * x.shape[3]))(x))


class HSNet(nn.Module):
    """Hypercorrelation Squeeze Network (Min, Kang, Cho, ICCV 2021).

    Args:
        backbone: "vgg16", "resnet50", "resnet101" or "efficientnet_lite0".
        pretrained: load the backbone's ImageNet weights.
        kernel: "center-pivot" (the paper's), "separable" or "dense".
        mask_support: multiply the support's features by its mask, equation (1). Without it the support's background
            takes part: the paper's ablation.
        layers, levels: which features are correlated, see `backbone.pyramid_layers`.
        convolutions: 4D convolutions in each squeezing and mixing block, 1 to 3 (the paper's ablation; it does not say
            how fewer were strided: here the first ones of the table are kept, and the support is averaged for the rest).
        train_backbone: train the backbone too (the paper's ablation: it over-fits).

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
        channels = tuple(len(level) for level in pyramid_layers(backbone, layers, levels))
        self.settings = {
            "backbone": backbone,
            "kernel": kernel,
            "mask_support": mask_support,
            "layers": layers,
            "levels": levels,
            "convolutions": convolutions,
            "train_backbone": train_backbone,
        }
        self.training_size: int | None = None  # image side it was trained at; stored with the weights
        self._warned = False
        self.backbone = Backbone(
            backbone, pretrained=pretrained, layers=layers, levels=levels, trainable=train_backbone
        )
        self.encoder = PyramidEncoder(channels, kernel, convolutions)
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
            ValueError: a wrong rank or size, or an image with NaN or infinity, naming it.
        """
        _check(query, support, support_mask, shots=False)
        self._warn_about_size(support)
        fuse = self.fuses(len(query), *(math.prod(-(-side // 8) for side in x.shape[-2:]) for x in (query, support)))
        # Each picture's features are reduced to what is needed of them before the next are made.
        supports = self._prepare_support(self.backbone(support), support_mask, fuse)
        query_levels = self._prepare_query(self.backbone(query), fuse)
        return self._logits(query_levels, supports, query.shape[-2:], fuse)

    @torch.no_grad()
    def predict(
        self,
        query: Float[Tensor, "b 3 h w"],
        support: Float[Tensor, "b k 3 hs ws"],
        support_mask: Bool[Tensor, "b k hs ws"] | Float[Tensor, "b k hs ws"],
        rule: str = "paper",
    ) -> Bool[Tensor, "b h w"]:
        """The mask of each query from K supports, by `vote`. Each image passes the backbone once.

        Raises:
            ValueError: a wrong rank or size, or an image with NaN or infinity, naming it.
        """
        _check(query, support, support_mask, shots=True)
        self._warn_about_size(support)
        support_levels = self.backbone(support.flatten(0, 1))
        return self.predict_from_features(self.backbone(query), support_levels, support_mask, query.shape[-2:], rule)

    @torch.no_grad()
    def predict_from_features(
        self,
        query_levels: list[list[Float[Tensor, "b _c _h _w"]]],
        support_levels: list[list[Float[Tensor, "bk _c _hs _ws"]]],
        support_mask: Bool[Tensor, "b k H W"] | Float[Tensor, "b k H W"],
        size: tuple[int, int],
        rule: str = "paper",
    ) -> Bool[Tensor, "b h w"]:
        """`predict` for features that are known already: of `backbone(query)`, and of the b·k supports in one batch.

        Args:
            size: height and width of the masks returned.
        """
        logits = self.logits_from_features(query_levels, support_levels, support_mask, size)
        return vote(torch.stack([one[:, 1] > one[:, 0] for one in logits], dim=1), rule)

    def logits_from_features(
        self,
        query_levels: list[list[Float[Tensor, "b _c _h _w"]]],
        support_levels: list[list[Float[Tensor, "bk _c _hs _ws"]]],
        support_mask: Bool[Tensor, "b k H W"] | Float[Tensor, "b k H W"],
        size: tuple[int, int],
    ) -> Iterator[Float[Tensor, "b 2 h w"]]:
        """The logits from each of the K supports, one after the other: the memory of one pass whatever K is."""
        b, k = support_mask.shape[:2]
        fuse = self.fuses(b, *(levels[0][0][0, 0].numel() for levels in (query_levels, support_levels)))
        query_levels = self._prepare_query([list(level) for level in query_levels], fuse)
        for shot in range(k):
            levels = [[f.unflatten(0, (b, k))[:, shot] for f in level] for level in support_levels]
            supports = self._prepare_support(levels, support_mask[:, shot], fuse)
            yield self._logits(query_levels, supports, size, fuse)

    def fuses(self, b: int, query_positions: int, support_positions: int) -> bool:
        """Whether correlation and first convolution go together (see `fused`); positions are those of the finest level.

        Else the pyramid is built as a whole: for other kernels, where gradients have to reach the features, and on a GPU,
        which would spend its time waiting for the many small operations, as long as it takes little of its memory.
        """
        if self.settings["kernel"] != "center-pivot" or self.backbone.trainable:
            return False
        device = next(self.decoder.parameters()).device
        if device.type != "cuda":
            return True
        layers = len(self.backbone.layers[0])
        room = torch.cuda.get_device_properties(device).total_memory * WHOLE
        return 4 * b * layers * query_positions * support_positions > room

    def _prepare_query(self, levels, fuse):
        """The features as the encoder takes them. The lists are used up: old and new are not held side by side."""
        for level in levels if fuse else []:
            for i in range(len(level)):
                level[i] = unit_vectors(level[i])
        return levels

    def _prepare_support(self, levels, mask, fuse):
        mask = mask if self.settings["mask_support"] else None
        if fuse:
            return [cut(f, mask, block.layers[0]) for f, block in zip(levels, self.encoder.squeezing, strict=True)]
        return levels if mask is None else mask_features(levels, mask)

    def _logits(self, query_levels, supports, size, fuse):
        if fuse:
            context = self.encoder.from_features(query_levels, supports)
        else:
            context = self.encoder(hypercorrelation_pyramid(query_levels, supports))
        # The query's own size: the reference resizes to the support's, right only where both are equal.
        return _resize(size)(self.decoder(context))

    def learned_parameters(self) -> dict[str, nn.Parameter]:
        """What training changes, by name: encoder and decoder, and the backbone only with `train_backbone`."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def load_reference_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Load a checkpoint of the authors' implementation; see `checkpoints.from_reference`."""
        tensors = from_reference(state_dict, self)
        backbone = {n: tensors.pop(n) for n in list(tensors) if n.startswith(BACKBONE)}
        self.backbone.load_unfolded({n.removeprefix(BACKBONE): t for n, t in backbone.items()})
        self.load_state_dict(tensors, strict=False)  # `from_reference` has found that none is missing
        self.backbone.pretrained = False  # the checkpoint brought its own copy

    @classmethod
    def from_run(cls, run: str | Path) -> "HSNet":
        """The trained model of a run: its name under `data/runs`, or its folder. Needs no other argument.

        Raises:
            FileNotFoundError: no such run, or one without weights.
            ValueError: weights that are damaged or of another model.
        """
        return load_model(run, cls)

    def _warn_about_size(self, support):
        trained = self.training_size
        if trained is None or self._warned:
            return
        sides = {squeezed_size(side) for side in support.shape[-2:]}
        if sides != {squeezed_size(trained)}:
            self._warned = True
            warnings.warn(
                f"the support is {support.shape[-2]} × {support.shape[-1]} px, this model was trained at {trained} px: "
                f"its squeezed support has another size ({sorted(sides)} instead of {squeezed_size(trained)} a side), "
                "so weights are read that training never changed. Resize the support to the training size; the query "
                "may keep its own.",
                stacklevel=3,
            )


def squeezed_size(side: int) -> int:
    """Side of the squeezed support of an image of `side` pixels: 1 up to 256 px, 2 up to 512, …"""
    return math.ceil(side / 256)


def vote(masks: Bool[Tensor, "b k h w"], rule: str = "paper") -> Bool[Tensor, "b h w"]:
    """One mask from the masks of K supports.

    Args:
        masks: what each support alone says.
        rule: "paper": foreground where the votes of a pixel are at least half of the image's largest number of votes
            (so with at most 2 of 5 votes anywhere, one is enough); "majority": at least half of K.

    Raises:
        ValueError: another rule.
    """
    if rule not in VOTE_RULES:
        raise ValueError(f"unknown vote rule {rule!r}: choose one of {', '.join(VOTE_RULES)}")
    votes = masks.sum(dim=1)
    largest = votes.amax(dim=(1, 2), keepdim=True).clamp(min=1) if rule == "paper" else masks.shape[1]
    return 2 * votes >= largest


def _check(query, support, mask, *, shots):
    """Errors a newcomer can act on; the shapes in the signatures are checked in the tests only."""
    ranks = (("query", query, "b 3 h w"), ("support", support, "b k 3 h w" if shots else "b 3 h w"))
    for name, image, form in ranks:
        if image.ndim != len(form.split()) or image.shape[-3] != 3:
            raise ValueError(f"{name} has shape {tuple(image.shape)}, expected {form}" + _hint(image, form))
        if not image.is_floating_point():
            raise ValueError(f"{name} is {image.dtype}: pass backbone.normalize(image), which makes floats of uint8")
        if not torch.compiler.is_compiling() and not image.isfinite().all():
            wrong = (~image.flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist()
            raise ValueError(f"{name} holds NaN or infinity, in batch item {wrong}: look at how that image was made")
    if mask.shape != (*support.shape[:-3], *support.shape[-2:]):
        raise ValueError(
            f"support_mask has shape {tuple(mask.shape)}, its image {tuple(support.shape)}: a mask needs the height and "
            "width of its image"
        )
    if query.shape[0] != support.shape[0]:
        raise ValueError(f"{query.shape[0]} queries but {support.shape[0]} supports: both need one batch size")


def _hint(image, form):
    missing = len(form.split()) - image.ndim
    return f": add the missing dimension{'s'[: missing > 1]} with image[None]" if missing > 0 else ""
