"""Segment your own pictures: a few annotated ones in, masks of others out."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from .devices import choose_device
from .episodes import resize_image, resize_mask
from .model import VOTE_RULES, HSNet, vote
from .pictures import Picture, describe, is_cutout, read_image, read_mask

RULES = (*VOTE_RULES, "mean")
# The decoder's logits are a quarter of the training size a side: above this side an answer is enlarged, not computed.
LARGEST = 2048


class Segmenter:
    """Few-shot segmentation of pictures of any size, by a trained run.

        segmenter = Segmenter("emoji-fold0-efficientnet_lite0")
        segmenter.fit(["a.jpg", "b.jpg"], ["a.png", "b.png"])
        mask = segmenter.predict("c.jpg")

    Pictures are squashed to the square the run was trained at, as in the paper, and the answer is stretched back.

    Args:
        run: a run's name under `data/runs`, or its folder.
        rule: how K supports become one mask: "paper" and "majority", see `vote`; "mean", where the mean probability
            exceeds a half.
        device: "auto", "cpu", "cuda", …

    Raises:
        FileNotFoundError: no such run, or one without weights.
        ValueError: an unknown rule or device.
    """

    def __init__(self, run: str | Path, *, rule: str = "paper", device: str = "auto"):
        if rule not in RULES:
            raise ValueError(f"unknown rule {rule!r}: choose one of {', '.join(RULES)}")
        self.rule = rule
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
        pictures = torch.stack([resize_image(image, self.size) for image, _ in pairs]).to(self.device)
        self._support_mask = torch.stack([resize_mask(mask, self.size) for _, mask in pairs])[None].to(self.device)
        for i, mask in enumerate(self._support_mask[0]):
            if not mask.any():  # nearest neighbour may step over it
                raise ValueError(
                    f"{_of(masks[i], images[i])}: the object vanishes at the {self.size} × {self.size} pixels the network sees: "
                    "cut the picture around it"
                )
        with torch.no_grad():
            self._support_levels = self.model.backbone(self.model.backbone.normalize(pictures))
        return self

    def predict(self, image: Picture) -> Bool[np.ndarray, "h w"]:
        """The mask of a picture, True on the object, at the picture's own size (upright).

        Raises:
            FileNotFoundError: a picture that is not there.
            RuntimeError: `fit` was not called.
            ValueError: a picture that cannot be read.
        """
        probabilities, size = self._probabilities(image)
        if self.rule == "mean":
            mask = probabilities.mean(dim=0) > 0.5
        else:
            mask = vote((probabilities > 0.5)[None], self.rule)[0]
        return _enlarge(mask, size).cpu().numpy()

    def predict_proba(self, image: Picture) -> Float[np.ndarray, "h w"]:
        """The probability of being the object, in [0, 1], at the picture's own size: the mean over the supports.

        It is a score of this network, which is not calibrated. Raises as `predict` does.
        """
        probabilities, size = self._probabilities(image)
        return _enlarge(probabilities.mean(dim=0), size).cpu().numpy()

    @torch.no_grad()
    def _probabilities(self, image) -> tuple[Float[Tensor, "k h w"], tuple[int, int]]:
        """For each support, at the picture's own size or, of large ones, a fraction of it; and the own size."""
        if self._support_mask is None:
            raise RuntimeError("this segmenter knows no supports: call fit(images, masks) first")
        pixels, (height, width) = read_image(image, least=self.size)
        query = self.model.backbone.normalize(resize_image(pixels, self.size)[None].to(self.device))
        fraction = min(1.0, LARGEST / max(height, width))
        size = (max(1, round(height * fraction)), max(1, round(width * fraction)))
        logits = self.model.logits_from_features(
            self.model.backbone(query), self._support_levels, self._support_mask, size
        )
        return torch.stack([one.float().softmax(dim=1)[0, 1] for one in logits]), (height, width)


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
    mode = {"mode": "nearest"} if values.dtype == torch.bool else {"mode": "bilinear", "align_corners": True}
    return F.interpolate(values[None, None].float(), size, **mode)[0, 0].to(values.dtype)
