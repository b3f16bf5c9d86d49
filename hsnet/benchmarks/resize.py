"""Images with their masks, resized to squares as in the reference."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Sample:
    """One picture and one class in it.

    Attributes:
        image: uint8 RGB (h, w, 3).
        mask: bool (h, w), True on the class.
        objects: bool (h, w), True on every annotated object of any class.
        ignored: bool (h, w), pixels that scoring leaves out.
    """

    image: np.ndarray
    mask: np.ndarray
    objects: np.ndarray
    ignored: np.ndarray


@dataclass(frozen=True)
class Square:
    """A `Sample` as tensors, its image resized to a square.

    Attributes:
        image: 3 s s.
        mask, objects, ignored: as in `Sample`, of the square's size; of a query that is scored at its own, of that.
    """

    image: UInt8[Tensor, "3 s s"]
    mask: Bool[Tensor, "h w"]
    objects: Bool[Tensor, "h w"]
    ignored: Bool[Tensor, "h w"]


def resize_image(image: np.ndarray | Image.Image, size: int) -> UInt8[Tensor, "3 h w"]:
    """uint8 RGB (h, w, 3), resized to a square by PIL's bilinear resize."""
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def resize_mask(mask: np.ndarray, size: int) -> Bool[Tensor, "h w"]:
    """bool (h, w), resized to a square: nearest, rounding down, as in the reference."""
    return resize_labels(mask.view(np.uint8), size) > 0


def resize_labels(labels: np.ndarray, size: int) -> UInt8[Tensor, "h w"]:
    """uint8 (h, w), resized like a mask: each class of the result is the resized mask of that class."""
    labels = torch.tensor(labels)
    if labels.shape != (size, size):
        labels = F.interpolate(labels[None, None], (size, size), mode="nearest")[0, 0]
    return labels


def resize_sample(sample: Sample, size: int, *, masks: bool = True) -> Square:
    """A sample as a square; with `masks` off, only its image, and its masks keep the picture's own size."""
    resize = (lambda mask: resize_mask(mask, size)) if masks else torch.tensor
    return Square(resize_image(sample.image, size), *map(resize, (sample.mask, sample.objects, sample.ignored)))
