"""Segment your own images from a few annotated ones."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .annotations import read_annotations
from .averaging import Supports, mean_maps, prepare_supports
from .baselines import Prototypes, with_prior
from .benchmarks.resize import resize_image, resize_mask
from .devices import choose_device
from .inputs import squeezed_size
from .model import VOTE_RULES, HSNet, vote
from .pictures import (
    BEHIND,
    EXIFS,
    Label,
    Picture,
    describe,
    image_of,
    is_cutout,
    load,
    looks_inverted,
    opaque,
    read_image,
    read_mask,
)
from .runs import DEFAULT_RUN
from .windows import DETAIL

RULES = (*VOTE_RULES, "mean")
ASPECTS = ("resize", "pad")
METHODS = ("hsnet", "prototypes")
# The decoder's logits are a quarter of the training size a side: above this side an answer is enlarged, not computed.
LARGEST = 2048


class Segmenter:
    """Few-shot segmentation of images of any size, by a trained run::

        segmenter = Segmenter()
        segmenter.fit(["a.jpg", "b.jpg"], ["a.png", "b.png"])
        mask = segmenter.predict("c.jpg")

    The network processes squares of the size of its training. Images are resized to them, as in the paper, or padded; the
    prediction has the image's own size.

    Args:
        run: a run's name under `data/runs`, or its folder; the default is the shipped one.
        rule: combination of K supports: "paper" and "majority", see `vote`; "mean" marks pixels whose mean probability
            exceeds the threshold stored with the weights. None is "mean" for weights with windows or a threshold, else "paper".
        aspect: "resize" ignores the image's aspect ratio; "pad" keeps it and fills the rest of the
            square with grey, which is neither object nor part of the prediction.
        device: "auto", "cpu", "cuda", …
        method: "hsnet"; or "prototypes", a baseline on the frozen features: a position is foreground where its
            feature at the coarsest level is nearer to the mean feature of the objects than to that of their background. The
            means are over all supports, and `rule` is not used.
        size: side of the squares, which contain whole images. None is the size of training. The default weights then also process
            windows around the objects (`HSNet.zoom`, rule "mean", `averaging.mean_maps`), which takes more time. The
            squeezed support must have as many positions as in training: 257 to 512 pixels give 2 × 2.
        exif: "apply" rotates images and masks as their EXIF says; "ignore" uses them as stored.

    Raises:
        FileNotFoundError: no such run, or one without weights.
        ValueError: an unknown rule, aspect, device, method or exif, or a size that these weights cannot take.
    """

    def __init__(
        self,
        run: str | Path = DEFAULT_RUN,
        *,
        rule: str | None = None,
        aspect: str = "resize",
        device: str = "auto",
        method: str = "hsnet",
        size: int | None = None,
        exif: str = "apply",
    ):
        known = {"rule": RULES, "aspect": ASPECTS, "method": METHODS, "exif": EXIFS}
        for (what, choices), value in zip(known.items(), (rule or "paper", aspect, method, exif), strict=True):
            if value not in choices:
                raise ValueError(f"unknown {what} {value!r}: choose one of {', '.join(choices)}")
        self.aspect, self.method, self.exif = aspect, method, exif
        self.device = choose_device(device)
        self.model = HSNet.from_run(run).to(self.device).eval()
        self.rule = rule or ("mean" if self.model.zoom or self.model.thresholds != (0.5, 0.5) else "paper")
        trained = self.model.training_size
        self.zoom = self.model.zoom and self.rule == "mean" and method == "hsnet" and size is None
        self.size = trained if size is None else size
        self._side = self.size * (DETAIL if self.zoom else 1)  # of the squares that are read
        if squeezed_size(self.size) != squeezed_size(trained) or self.size < 32:
            largest = 256 * squeezed_size(trained)
            raise ValueError(
                f"size is {size}: use {max(32, largest - 255)} to {largest} px. These weights were trained at "
                f"{trained} px, and another size would change that of the squeezed support"
            )
        self._supports: Supports = []

    def fit(
        self,
        images: Picture | Sequence[Picture],
        masks: Picture | Sequence[Picture | None] | None = None,
        label: Label | None = None,
    ) -> "Segmenter":
        """Compute and store the features of supports. Warns of a mask that seems to mark the background.

        Args:
            images: one image or a list of several with objects of one class. Each is a file's name or path, a PIL image, or an
                array of shape (h, w), (h, w, 3) or (h, w, 4): integers, or floats from 0 to 1 (see `hsnet.pictures`).
            masks: as many, of the same sizes: images or arrays with the object white, True, 1 or 255 and the rest black,
                False or 0; or the path of annotations of labelme or COCO. None stands for the transparency of a cut-out.
                `hsnet.pictures` has a table of the meaning of each kind.
            label: value, colour (r, g, b) or name of the object, where masks or annotations contain several.

        Returns:
            The segmenter itself.

        Raises:
            FileNotFoundError: a missing image.
            ValueError: an image that cannot be read, or a folder; a mask that is empty, of another size than its image,
                or ambiguous; different numbers of images and masks.
        """
        images = images if isinstance(images, (list, tuple)) else [images]
        masks = masks if isinstance(masks, (list, tuple)) else [masks] * (1 if masks is not None else len(images))
        if len(images) != len(masks):
            raise ValueError(f"{len(images)} images but {len(masks)} masks: give one mask for each image")
        pairs = zip(images, masks, strict=True)
        return self.fit_supports([read_support(image, mask, label, self.exif) for image, mask in pairs])

    def fit_supports(self, supports: Sequence["Support"]) -> "Segmenter":
        """`fit` for the results of `read_support`."""
        if not supports:
            raise ValueError("no support: give one image or more, each with its mask")
        for name, _, mask in supports:
            if looks_inverted(mask):
                warnings.warn(
                    f"{name} marks {100 * mask.mean():.0f} % of the image, including its borders: is it inverted? "
                    "The object must be white, everything else black",
                    stacklevel=3,
                )
        pictures = torch.stack([square_image(s.pixels, self._side, self.aspect) for s in supports])
        support_mask = torch.stack([square_mask(s.mask, self._side, self.aspect) for s in supports])
        episode = (x[None].to(self.device) for x in (pictures, support_mask))
        prepared = prepare_supports(self.model, *episode, self.size, self.zoom)
        for side, _, masks in prepared:
            for (name, *_), seen in zip(supports, masks[0].any(dim=(1, 2)).tolist(), strict=True):
                if not seen:  # nearest neighbour may step over it
                    raise ValueError(
                        f"{name}: the object vanishes when the image is resized to {side} × {side} px: "
                        "crop the image around the object"
                    )
        self._supports = prepared
        return self

    def predict(self, image: Picture | Sequence[Picture]) -> Bool[np.ndarray, "h w"] | list[Bool[np.ndarray, "_h _w"]]:
        """The mask of an image, True on the object, at the image's own size (upright).

        Args:
            image: one image of the kinds that `fit` takes; or a list, which returns a list of masks.

        Raises:
            FileNotFoundError: a missing image.
            RuntimeError: `fit` was not called.
            ValueError: an image that cannot be read, or a folder.
        """
        images = image if isinstance(image, (list, tuple)) else [image]
        masks = []
        for maps, mean, size in self._maps(images) if images else ():
            if self.rule == "mean" and self.method == "hsnet":
                mask = mean > self.model.thresholds[len(maps) > 1]
            else:
                mask = vote((maps > 0.5)[None], "paper" if self.method == "prototypes" else self.rule)[0]
            masks.append(_enlarge(mask, size).cpu().numpy())
        return masks if isinstance(image, (list, tuple)) else masks[0]

    def predict_proba(self, image: Picture) -> Float[np.ndarray, "h w"]:
        """The probability of foreground, in [0, 1], at the image's own size: the mean over the supports, with the prior of
        the weights (`baselines.with_prior`).

        It is not calibrated. Raises as `predict` does, and ValueError for a method without probabilities.
        """
        _, mean, size = self._each(image)
        return _enlarge(mean, size).cpu().numpy()

    def predict_each(self, image: Picture) -> Bool[np.ndarray, "k h w"]:
        """The mask from each of the K supports alone, at the image's own size. Raises as `predict_proba` does."""
        probabilities, _, size = self._each(image)
        return np.stack([_enlarge(one > self.model.thresholds[0], size).cpu().numpy() for one in probabilities])

    def _each(self, image):
        if self.method == "prototypes":
            raise ValueError("the method prototypes has no probabilities: call predict, or use method='hsnet'")
        return next(self._maps([image]))

    def _maps(self, images) -> Iterator[tuple[Float[Tensor, "k h w"], Float[Tensor, "h w"], tuple[int, int]]]:
        """For each picture: each support's probabilities and their mean with the prior, at its own size or, if it is large, a
        fraction of it; and its own size. Of prototypes: one mask, as 0 and 1.
        """
        if not self._supports:
            raise RuntimeError("this segmenter has no supports: call fit(images, masks) first")
        pictures = [read_image(image, self._side, self.exif) for image in images]
        for pixels, size in pictures:
            square = square_image(pixels, self._side, self.aspect)[None].to(self.device)
            maps, contrast = self._of_square(square, _within(size))
            yield maps, with_prior(maps.mean(dim=0), contrast, self.model.prior), size

    @torch.no_grad()
    def _of_square(self, square, size) -> tuple[Float[Tensor, "k h w"], Float[Tensor, "h w"]]:
        """Each support's probabilities, and the prototypes' contrast."""
        computed = (self._side,) * 2 if self.aspect == "pad" else size  # logits are resized once
        if self.method == "prototypes":
            [(_, *support)] = self._supports
            query = self.model.backbone(self.model.backbone.normalize(square))
            contrast = Prototypes.contrast(query, *support, computed)
            maps = (contrast > 0).float()[:, None]
        else:
            maps, contrast = mean_maps(self.model, square, self._supports, computed, self.zoom)
        maps, contrast = (from_square(x, size, self._side, self.aspect)[0] for x in (maps, contrast[:, None]))
        return maps, contrast[0]


def square_image(image: UInt8[np.ndarray, "h w 3"], side: int, aspect: str) -> UInt8[Tensor, "3 side side"]:
    """An image as the square that the network processes, see `Segmenter`."""
    if aspect != "pad":
        return resize_image(image, side)
    (height, width), inside = _inside(image.shape[:2], side)
    square = torch.full((3, side, side), BEHIND, dtype=torch.uint8)
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    square[:, *inside] = torch.tensor(np.asarray(small)).permute(2, 0, 1)
    return square


def square_mask(mask: Bool[np.ndarray, "h w"], side: int, aspect: str) -> Bool[Tensor, "side side"]:
    """A mask as `square_image` places its picture; False beside it."""
    if aspect != "pad":
        return resize_mask(mask, side)
    size, inside = _inside(mask.shape, side)
    square = torch.zeros(side, side, dtype=torch.bool)
    square[inside] = F.interpolate(torch.tensor(mask)[None, None].float(), size, mode="nearest")[0, 0] > 0
    return square


def from_square(
    values: Float[Tensor, "k c _h _w"], size: tuple[int, int], side: int, aspect: str
) -> Float[Tensor, "k c h w"]:
    """Values over the network's square, at any resolution, brought back to the picture's height and width."""
    if aspect == "pad":
        _, inside = _inside(size, side)
        values = _bilinear(values, (side, side))[:, :, *inside]
    return _bilinear(values, size)


def _within(size):
    """A picture's height and width, no longer than `LARGEST`."""
    fraction = min(1.0, LARGEST / max(size))
    return max(1, round(size[0] * fraction)), max(1, round(size[1] * fraction))


def _inside(size, side):
    """Height and width of a picture scaled so that its longer side is `side`, and where in the square it lies."""
    height, width = (max(1, round(n * side / max(size))) for n in size)
    top, left = (side - height) // 2, (side - width) // 2
    return (height, width), (slice(top, top + height), slice(left, left + width))


def _bilinear(values, size):
    return F.interpolate(values, size, mode="bilinear", align_corners=True)


class Support(NamedTuple):
    """An image and its mask, with checked sizes.

    Attributes:
        name: how messages name the mask.
        pixels: uint8 RGB (h, w, 3).
        mask: booleans (h, w).
    """

    name: str
    pixels: np.ndarray
    mask: np.ndarray


def read_support(image: Picture, mask: Picture | None, label: Label | None = None, exif: str = "apply") -> Support:
    """Read a support; the arguments as in `Segmenter.fit`.

    Raises:
        FileNotFoundError: a file that is not there.
        ValueError: a picture or mask that cannot be used, naming it.
    """
    picture = load(image, exif=exif)
    pixels, size, turn = image_of(picture), picture.size, 1
    name = f"the mask {mask}" if isinstance(mask, (str, Path)) else f"the mask of {describe(image)}"
    if mask is None:
        if not is_cutout(picture):
            raise ValueError(
                f"{describe(image)} has no mask and is not a cut-out with a transparent background: give its mask"
            )
        return Support(name, pixels, opaque(picture))
    if isinstance(mask, (str, Path)) and Path(mask).suffix.lower() == ".json":
        own = Path(image).name if isinstance(image, (str, Path)) else ""
        truth = read_annotations(Path(mask), own, size, label)
    else:
        stored = load(mask, exif=exif, frames=1)
        truth, turn = read_mask(stored, label, of=pixels), stored.turn
    is_so = f"is turned by its EXIF orientation {picture.turn}, {name} " + (f"by {turn}" if turn > 1 else "is not")
    reading, differ = f"{describe(image)} {is_so}", exif == "apply" and picture.turn != turn
    if truth.shape != size:
        why = "Is it the mask of another image, or of this one before it was resized?"
        if truth.shape == size[::-1] and differ:
            why = f"Their orientations differ: {reading}. If the tool that drew it ignores EXIF, use --exif ignore"
        elif truth.shape == size[::-1]:
            why = "Their orientations differ: does the tool that drew the mask ignore the image's EXIF rotation?"
        raise ValueError(
            f"{name} is {truth.shape[1]} × {truth.shape[0]} pixels, its image {size[1]} × {size[0]}, and "
            f"a mask must have its image's size. {why}"
        )
    if differ and ((picture.turn > 4) == (turn > 4) or size[0] == size[1]):
        warnings.warn(
            f"{reading}: the mask is read as drawn on the rotated image. If the tool that drew it ignores EXIF, "
            "use --exif ignore (in Python exif='ignore')",
            stacklevel=3,
        )
    if not truth.any():
        raise ValueError(f"{name} is empty: mark the object with True, 1 or 255")
    return Support(name, pixels, truth)


def _enlarge(values, size):
    """Bilinear for probabilities, nearest for masks."""
    if tuple(values.shape) == size:
        return values
    if values.dtype == torch.bool:
        return F.interpolate(values[None, None].float(), size, mode="nearest")[0, 0] > 0
    return _bilinear(values[None, None], size)[0, 0]
