"""Augmentation of training images: mirrored, cropped, recoloured; not in the paper's settings."""

import numpy as np
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from .resize import Square

AUGMENTATIONS = ("mirror", "crop", "colour")
KEPT = 0.4  # least share of the object that a crop keeps
CROPS = 10  # crops that are drawn until one keeps enough
AREA = (0.3, 1.0)  # of a crop, as a share of the image's
ASPECT = (3 / 4, 4 / 3)
COLOUR = (0.6, 1.4)  # factors of brightness, contrast and saturation


def augment(square: Square, kinds: tuple[str, ...], rng: np.random.Generator) -> Square:
    """The same object in another image.

    Args:
        kinds: of `AUGMENTATIONS`: "mirror", at half of the draws; "crop", which keeps at least `KEPT` of the object;
            "colour": brightness, contrast and saturation.
        rng: draws everything, so that a training repeats.
    """
    if not kinds:
        return square
    image, masks = square.image, torch.stack([square.mask, square.objects, square.ignored])
    if "mirror" in kinds and rng.random() < 0.5:
        image, masks = image.flip(-1), masks.flip(-1)
    if "crop" in kinds:
        box = _crop(masks[0], rng)
        size = list(image.shape[-2:])
        image = transforms.resized_crop(image, *box, size, antialias=True)
        masks = transforms.resized_crop(masks.byte(), *box, size, InterpolationMode.NEAREST) > 0
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
