"""Augmentation of training images: mirrored, cropped, zoomed, recoloured; not in the paper's settings."""

import numpy as np
import torch
from torchvision.transforms.v2 import functional as transforms

from ..windows import resized, window
from .resize import Square

AUGMENTATIONS = ("mirror", "crop", "colour", "zoom")
KEPT = 0.4  # least share of the object that a crop keeps
CROPS = 10  # crops that are drawn until one keeps enough
AREA = (0.3, 1.0)  # of a crop, as a share of the image's
ASPECT = (3 / 4, 4 / 3)
MARGIN = (1.2, 2.4)  # of a zoomed window, in sides of the object's box
COLOUR = (0.6, 1.4)  # factors of brightness, contrast and saturation


def augment(square: Square, kinds: tuple[str, ...], rng: np.random.Generator, size: int, *, support: bool) -> Square:
    """The same object in another image.

    Args:
        kinds: of `AUGMENTATIONS`: "mirror", at half of the draws; "crop", which keeps at least `KEPT` of the object; "zoom": a
            window around the object (`windows.window`) instead, of each support and of half of the queries; "colour":
            brightness, contrast and saturation.
        rng: draws everything, so that a training repeats.
        size: side of the result in pixels.
        support: whether it is one.
    """
    image, masks = square.image, torch.stack([square.mask, square.objects, square.ignored])
    if "mirror" in kinds and rng.random() < 0.5:
        image, masks = image.flip(-1), masks.flip(-1)
    box = 0, 0, *image.shape[-2:]
    if "zoom" in kinds and (support or rng.random() < 0.5):
        box = window(masks[0], rng.uniform(*MARGIN), tuple(rng.random(2)))
    elif "crop" in kinds:
        box = _crop(masks[0], rng)
    image, masks = resized(image, box, size), resized(masks, box, size)
    if "colour" in kinds:
        brightness, contrast, saturation = rng.uniform(*COLOUR, 3)
        image = transforms.adjust_brightness(image, brightness)
        image = transforms.adjust_contrast(image, contrast)
        image = transforms.adjust_saturation(image, saturation)
    return Square(image, *masks)


def _crop(mask, rng):
    """Top, left, height and width of a crop; of all of the image where no crop keeps enough."""
    height, width = mask.shape
    for _ in range(CROPS):
        area, aspect = rng.uniform(*AREA), np.exp(rng.uniform(*np.log(ASPECT)))
        h, w = (min(n, round(n * (area * f) ** 0.5)) for n, f in ((height, aspect), (width, 1 / aspect)))
        top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
        if mask[top : top + h, left : left + w].sum() >= KEPT * mask.sum():
            return top, left, h, w
    return 0, 0, height, width
