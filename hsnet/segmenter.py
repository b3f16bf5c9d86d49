"""Segment your own pictures: a few annotated ones in, masks of others out."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from .devices import choose_device
from .episodes import resize_image, resize_mask
from .model import VOTE_RULES, HSNet, vote
from .pictures import BEHIND, Picture, describe, is_cutout, read_image, read_mask

RULES = (*VOTE_RULES, "mean")
ASPECTS = ("squash", "pad")
# The decoder's logits are a quarter of the training size a side: above this side an answer is enlarged, not computed.
LARGEST = 2048


class Segmenter:
    """Few-shot segmentation of pictures of any size, by a trained run.

        segmenter = Segmenter("emoji")
        segmenter.fit(["a.jpg", "b.jpg"], ["a.png", "b.png"])
        mask = segmenter.predict("c.jpg")

    The network sees squares of the size it was trained at. Pictures are squashed to them, as in the paper, or padded; the
    answer has the picture's own size.

    Args:
        run: "emoji", the weights that come with the repository; or a run's name under `data/runs`, or its folder.
        rule: how K supports become one mask: "paper" and "majority", see `vote`; "mean", where the mean probability
            exceeds a half.
        aspect: "squash" stretches a picture to the square; "pad" keeps its proportions and fills the rest of the
            square with grey, which is neither object nor part of the answer.
        device: "auto", "cpu", "cuda", …

    Raises:
        FileNotFoundError: no such run, or one without weights.
        ValueError: an unknown rule, aspect or device.
    """

    def __init__(self, run: str | Path = "emoji", *, rule: str = "paper", aspect: str = "squash", device: str = "auto"):
        if rule not in RULES:
            raise ValueError(f"unknown rule {rule!r}: choose one of {', '.join(RULES)}")
        if aspect not in ASPECTS:
            raise ValueError(f"unknown aspect {aspect!r}: choose one of {', '.join(ASPECTS)}")
        self.rule, self.aspect = rule, aspect
        self.device = choose_device(device)
        self.model = HSNet.from_run(run).to(self.device).eval()
        self.size = self.model.training_size
        self._support_levels: list[list[Tensor]] = []
        self._support_mask: Tensor | None = None

    def fit(self, images: Picture | list[Picture], masks: Picture | list[Picture | None] | None = None) -> "Segmenter":
        """Remember supports: their features are computed here, once.

        Args:
            images: one picture or several of one kind of thing: paths, PIL images, arrays (see `read_image`).
            masks: as many, of the same sizes (see `read_mask`). None, or None for one of them: the picture is a
                cut-out, whose own transparency is the mask.

        Returns:
            The segmenter itself.

        Raises:
            FileNotFoundError: a picture that is not there.
            ValueError: a picture that cannot be read; a mask that is empty, of another size than its picture, or not a
                mask; other numbers of pictures and masks.
        """
        images = images if isinstance(images, (list, tuple)) else [images]
        masks = masks if isinstance(masks, (list, tuple)) else [masks] * (1 if masks is not None else len(images))
        if not images:
            raise ValueError("no support: give one picture or more, each with its mask")
        if len(images) != len(masks):
            raise ValueError(f"{len(images)} pictures but {len(masks)} masks: give one mask for each picture")
        pairs = [read_support(image, mask) for image, mask in zip(images, masks, strict=True)]
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
            image: one picture; or a list, whose pictures pass the network as one batch and whose masks come as a list.

        Raises:
            FileNotFoundError: a picture that is not there.
            RuntimeError: `fit` was not called.
            ValueError: a picture that cannot be read.
        """
        images = image if isinstance(image, list) else [image]
        masks = []
        for probabilities, size in self._probabilities(images):
            if self.rule == "mean":
                mask = probabilities.mean(dim=0) > 0.5
            else:
                mask = vote((probabilities > 0.5)[None], self.rule)[0]
            masks.append(_enlarge(mask, size).cpu().numpy())
        return masks if isinstance(image, list) else masks[0]

    def predict_proba(self, image: Picture) -> Float[np.ndarray, "h w"]:
        """The probability of being the object, in [0, 1], at the picture's own size: the mean over the supports.

        It is a score of this network, which is not calibrated. Raises as `predict` does.
        """
        [(probabilities, size)] = self._probabilities([image])
        return _enlarge(probabilities.mean(dim=0), size).cpu().numpy()

    def predict_each(self, image: Picture) -> Bool[np.ndarray, "k h w"]:
        """What each of the K supports alone says, at the picture's own size. Raises as `predict` does."""
        [(probabilities, size)] = self._probabilities([image])
        return np.stack([_enlarge(one > 0.5, size).cpu().numpy() for one in probabilities])

    def _probabilities(self, images) -> Iterator[tuple[Float[Tensor, "k h w"], tuple[int, int]]]:
        """For each picture: from each support, at its own size or, if it is large, a fraction of it; and its own size."""
        if self._support_mask is None:
            raise RuntimeError("this segmenter knows no supports: call fit(images, masks) first")
        pictures = [read_image(image, least=self.size) for image in images]
        squares = torch.stack([square_image(pixels, self.size, self.aspect) for pixels, _ in pictures]).to(self.device)
        b = len(images)
        with torch.no_grad():
            query_levels = self.model.backbone(self.model.backbone.normalize(squares))
            supports = [[f.repeat(b, 1, 1, 1) for f in level] for level in self._support_levels]  # for every query
            masks = self._support_mask.expand(b, -1, -1, -1)
            height, width = query_levels[0][0].shape[-2:]  # the decoder returns twice as many: nothing is resized yet
            logits = self.model.logits_from_features(query_levels, supports, masks, (2 * height, 2 * width))
            logits = torch.stack(list(logits), dim=1)  # b k 2 h w
        for one, (_, (height, width)) in zip(logits, pictures, strict=True):
            fraction = min(1.0, LARGEST / max(height, width))
            size = (max(1, round(height * fraction)), max(1, round(width * fraction)))
            probabilities = from_square(one.float(), size, self.size, self.aspect).softmax(dim=1)[:, 1]
            yield probabilities, (height, width)


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
        turned = ". They are turned against each other: is the picture's EXIF rotation ignored by the tool that drew the mask?"
        raise ValueError(
            f"{_of(mask, image)} is {truth.shape[1]} × {truth.shape[0]} pixels, its picture {size[1]} × {size[0]}: "
            "a mask has its picture's size. Are the masks in the order of the pictures?"
            + (turned if truth.shape == size[::-1] else "")
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
