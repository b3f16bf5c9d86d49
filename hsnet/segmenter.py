"""Segment your own pictures: a few annotated ones in, masks of others out."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .baselines import Prototypes
from .devices import choose_device
from .episodes import resize_image, resize_mask
from .inputs import squeezed_size
from .model import VOTE_RULES, HSNet, vote
from .pictures import BEHIND, Picture, describe, is_cutout, looks_inverted, read_image, read_mask
from .runs import DEFAULT_RUN

RULES = (*VOTE_RULES, "mean")
ASPECTS = ("squash", "pad")
METHODS = ("hsnet", "prototypes")
# The decoder's logits are a quarter of the training size a side: above this side an answer is enlarged, not computed.
LARGEST = 2048


class Segmenter:
    """Few-shot segmentation of pictures of any size, by a trained run.

        segmenter = Segmenter()
        segmenter.fit(["a.jpg", "b.jpg"], ["a.png", "b.png"])
        mask = segmenter.predict("c.jpg")

    The network sees squares of the size it was trained at. Pictures are squashed to them, as in the paper, or padded; the
    answer has the picture's own size.

    Args:
        run: a run's name under `data/runs`, or its folder; the default is the one that comes with the repository.
        rule: how K supports become one mask: "paper" and "majority", see `vote`; "mean", where the mean probability
            exceeds a half.
        aspect: "squash" stretches a picture to the square; "pad" keeps its proportions and fills the rest of the
            square with grey, which is neither object nor part of the answer.
        device: "auto", "cpu", "cuda", …
        method: "hsnet"; or "prototypes", the baseline of the frozen features alone, which no training has improved: a
            place is marked where its feature at the coarsest level is nearer to the mean of the objects' than to that of
            what surrounds them. All supports enter these means, and `rule` has no part.
        size: side of the squares; None for the size of training. Larger ones show more of small things and take more time;
            the squeezed support must have as many positions as in training: 257 to 512 pixels give it 2 × 2.

    Raises:
        FileNotFoundError: no such run, or one without weights.
        ValueError: an unknown rule, aspect, device or method, or a size that these weights cannot take.
    """

    def __init__(
        self,
        run: str | Path = DEFAULT_RUN,
        *,
        rule: str = "paper",
        aspect: str = "squash",
        device: str = "auto",
        method: str = "hsnet",
        size: int | None = None,
    ):
        for what, value, known in (("rule", rule, RULES), ("aspect", aspect, ASPECTS), ("method", method, METHODS)):
            if value not in known:
                raise ValueError(f"unknown {what} {value!r}: choose one of {', '.join(known)}")
        self.rule, self.aspect, self.method = rule, aspect, method
        self.device = choose_device(device)
        self.model = HSNet.from_run(run).to(self.device).eval()
        trained = self.model.training_size
        self.size = trained if size is None else size
        if squeezed_size(self.size) != squeezed_size(trained) or self.size < 32:
            largest = 256 * squeezed_size(trained)
            raise ValueError(
                f"size is {size}: these weights were trained at {trained} px and take squares of {max(32, largest - 255)} to "
                f"{largest} px, whose squeezed support has as many positions"
            )
        self._support_levels: list[list[Tensor]] = []
        self._support_mask: Tensor | None = None

    def fit(self, images: Picture | list[Picture], masks: Picture | list[Picture | None] | None = None) -> "Segmenter":
        """Remember supports: their features are computed here, once. Warns of a mask that seems to mark all but the object.

        Args:
            images: one picture or a list of several of one kind of thing. Each is a file's name or path, a PIL image, or an
                array of shape (h, w), (h, w, 3) or (h, w, 4): uint8 from 0 to 255, integers of 16 bits, or floats from
                0 to 1 (see `read_image`).
            masks: as many, of the same sizes. Each is a name, path or PIL image, or an array of shape (h, w) with the
                object True, 1 or 255 and all else False or 0, of any kind of number (see `read_mask`). None, or None for
                one of them: the picture is a cut-out, whose own transparency is the mask.

        Returns:
            The segmenter itself.

        Raises:
            FileNotFoundError: a picture that is not there.
            ValueError: a picture that cannot be read, or a folder; a mask that is empty, of another size than its picture,
                or not a mask; other numbers of pictures and masks.
        """
        images = images if isinstance(images, (list, tuple)) else [images]
        masks = masks if isinstance(masks, (list, tuple)) else [masks] * (1 if masks is not None else len(images))
        if not images:
            raise ValueError("no support: give one picture or more, each with its mask")
        if len(images) != len(masks):
            raise ValueError(f"{len(images)} pictures but {len(masks)} masks: give one mask for each picture")
        pairs = [read_support(image, mask) for image, mask in zip(images, masks, strict=True)]
        for image, mask, (_, truth) in zip(images, masks, pairs, strict=True):
            if looks_inverted(truth):
                warnings.warn(
                    f"{_of(mask, image)} marks {100 * truth.mean():.0f} % of the picture, its borders too: is it inverted? "
                    "The object is white, everything else black",
                    stacklevel=2,
                )
        pictures = torch.stack([square_image(image, self.size, self.aspect) for image, _ in pairs]).to(self.device)
        support_mask = torch.stack([square_mask(mask, self.size, self.aspect) for _, mask in pairs])
        for i, mask in enumerate(support_mask):
            if not mask.any():  # nearest neighbour may step over it
                raise ValueError(
                    f"{_of(masks[i], images[i])}: the object vanishes at the {self.size} × {self.size} pixels the network sees: "
                    "cut the picture around it"
                )
        with torch.no_grad():
            self._support_levels = self.model.backbone(self.model.backbone.normalize(pictures))
        self._support_mask = support_mask[None].to(self.device)
        return self

    def predict(self, image: Picture | list[Picture]) -> Bool[np.ndarray, "h w"] | list[Bool[np.ndarray, "_h _w"]]:
        """The mask of a picture, True on the object, at the picture's own size (upright).

        Args:
            image: one picture, of the kinds that `fit` takes; or a list, whose pictures pass the network as one batch and
                whose masks come as a list. For many pictures call it with a few at a time.

        Raises:
            FileNotFoundError: a picture that is not there.
            RuntimeError: `fit` was not called.
            ValueError: a picture that cannot be read, or a folder.
        """
        images = image if isinstance(image, list) else [image]
        masks = []
        if self.method == "prototypes":
            masks = [masks[0].cpu().numpy() for masks in self._by_prototypes(images, together=True)]
            return masks if isinstance(image, list) else masks[0]
        for probabilities, size in self._probabilities(images):
            if self.rule == "mean":
                mask = probabilities.mean(dim=0) > 0.5
            else:
                mask = vote((probabilities > 0.5)[None], self.rule)[0]
            masks.append(_enlarge(mask, size).cpu().numpy())
        return masks if isinstance(image, list) else masks[0]

    def predict_proba(self, image: Picture) -> Float[np.ndarray, "h w"]:
        """The probability of being the object, in [0, 1], at the picture's own size: the mean over the supports.

        It is a score of this network, which is not calibrated. Raises as `predict` does, and ValueError where the method
        has no probabilities.
        """
        if self.method == "prototypes":
            raise ValueError("prototypes give masks, no probabilities: call predict, or use the method hsnet")
        [(probabilities, size)] = self._probabilities([image])
        return _enlarge(probabilities.mean(dim=0), size).cpu().numpy()

    def predict_each(self, image: Picture) -> Bool[np.ndarray, "k h w"]:
        """What each of the K supports alone says, at the picture's own size. Raises as `predict` does."""
        if self.method == "prototypes":
            return next(self._by_prototypes([image], together=False)).cpu().numpy()
        [(probabilities, size)] = self._probabilities([image])
        return np.stack([_enlarge(one > 0.5, size).cpu().numpy() for one in probabilities])

    def _probabilities(self, images) -> Iterator[tuple[Float[Tensor, "k h w"], tuple[int, int]]]:
        """For each picture: from each support, at its own size or, if it is large, a fraction of it; and its own size."""
        query_levels, sizes = self._features(images)
        b = len(images)
        with torch.no_grad():
            supports = [[f.repeat(b, 1, 1, 1) for f in level] for level in self._support_levels]  # for every query
            masks = self._support_mask.expand(b, -1, -1, -1)
            height, width = query_levels[0][0].shape[-2:]  # the decoder returns twice as many: nothing is resized yet
            logits = self.model.logits_from_features(query_levels, supports, masks, (2 * height, 2 * width))
            logits = torch.stack(list(logits), dim=1)  # b k 2 h w
        for one, size in zip(logits, sizes, strict=True):
            yield from_square(one.float(), _within(size), self.size, self.aspect).softmax(dim=1)[:, 1], size

    def _features(self, images) -> tuple[list[list[Tensor]], list[tuple[int, int]]]:
        """Features of pictures as one batch, and their own heights and widths."""
        if self._support_mask is None:
            raise RuntimeError("this segmenter knows no supports: call fit(images, masks) first")
        pictures = [read_image(image, least=self.size) for image in images]
        squares = torch.stack([square_image(pixels, self.size, self.aspect) for pixels, _ in pictures]).to(self.device)
        with torch.no_grad():
            return self.model.backbone(self.model.backbone.normalize(squares)), [size for _, size in pictures]

    def _by_prototypes(self, images, together: bool) -> Iterator[Bool[Tensor, "k h w"]]:
        """For each picture its masks, at its own size: one by all supports together, or one by each of them."""
        query_levels, sizes = self._features(images)
        side, masks = self.size, self._support_mask
        groups = [slice(None)] if together else [slice(i, i + 1) for i in range(masks.shape[1])]
        for i, size in enumerate(sizes):
            query = [[f[i : i + 1] for f in level] for level in query_levels]
            found = [
                Prototypes.contrast(
                    query, [[f[g] for f in level] for level in self._support_levels], masks[:, g], (side, side)
                )
                for g in groups
            ]
            square = (torch.cat(found)[:, None] > 0).float()  # k 1 s s
            own = from_square(square, _within(size), side, self.aspect)[:, 0] > 0.5
            yield torch.stack([_enlarge(mask, size) for mask in own])


def square_image(image: UInt8[np.ndarray, "h w 3"], side: int, aspect: str) -> UInt8[Tensor, "3 side side"]:
    """A picture as the square that the network sees, see `Segmenter`."""
    if aspect == "squash":
        return resize_image(image, side)
    (height, width), inside = _inside(image.shape[:2], side)
    square = torch.full((3, side, side), BEHIND, dtype=torch.uint8)
    small = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    square[:, *inside] = torch.tensor(np.asarray(small)).permute(2, 0, 1)
    return square


def square_mask(mask: Bool[np.ndarray, "h w"], side: int, aspect: str) -> Bool[Tensor, "side side"]:
    """A mask as `square_image` places its picture; False beside it."""
    if aspect == "squash":
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


def read_support(image: Picture, mask: Picture | None) -> tuple[np.ndarray, np.ndarray]:
    """A support's picture and mask, checked against each other.

    Returns:
        uint8 RGB (h, w, 3) and booleans (h, w).

    Raises:
        FileNotFoundError: a file that is not there.
        ValueError: what does not fit, naming it.
    """
    pixels, size = read_image(image)
    if mask is None and not is_cutout(image):
        raise ValueError(
            f"{describe(image)} has no mask and is not a cut-out with a transparent background: give its mask"
        )
    truth = read_mask(image if mask is None else mask)
    if truth.shape != size:
        turned = (
            "They are turned against each other: does the tool that drew the mask ignore the picture's EXIF rotation?"
        )
        raise ValueError(
            f"{_of(mask, image)} is {truth.shape[1]} × {truth.shape[0]} pixels, its picture {size[1]} × {size[0]}, and "
            "a mask has its picture's size. "
            + (
                turned
                if truth.shape == size[::-1]
                else "Is it the mask of another picture, or of this one before it was resized?"
            )
        )
    if not truth.any():
        raise ValueError(f"{_of(mask, image)} is empty: mark the object with True, 1 or 255")
    return pixels, truth


def _of(mask, image):
    return f"the mask {mask}" if isinstance(mask, (str, Path)) else f"the mask of {describe(image)}"


def _enlarge(values, size):
    """Bilinear for probabilities, nearest for masks."""
    if tuple(values.shape) == size:
        return values
    if values.dtype == torch.bool:
        return F.interpolate(values[None, None].float(), size, mode="nearest")[0, 0] > 0
    return _bilinear(values[None, None], size)[0, 0]
