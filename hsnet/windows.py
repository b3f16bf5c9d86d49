"""Windows around objects: what is enlarged of a support, and of a query in a second pass."""

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

Box = tuple[int, int, int, int]  # top, left, height, width
DETAIL = 2  # images of which windows are cut are read so many times as large as the network processes them
LEAST = 1 / 3  # of the image's sides: smaller windows would mostly enlarge pixels
WHOLE = 0.9  # a larger window is the whole image


def window(mask: Bool[Tensor, "h w"], margin: float, place: tuple[float, float] = (0.5, 0.5)) -> Box:
    """A window around the marked pixels, with the image's aspect ratio; the whole image where none is marked.

    Args:
        margin: side of the window, in sides of the box around the marked pixels; at least 1.
        place: where in the window the box lies, from 0 (at the top, at the left) to 1.
    """
    rows, columns = (mask.any(axis).nonzero()[:, 0].tolist() for axis in (1, 0))
    if not rows:
        return 0, 0, *mask.shape
    spans = [(seen[0], seen[-1] + 1, side) for seen, side in zip((rows, columns), mask.shape, strict=True)]
    share = max(LEAST, margin * max((high - low) / side for low, high, side in spans))
    if share > WHOLE:
        return 0, 0, *mask.shape
    corner, lengths = [], [round(share * side) for side in mask.shape]
    for (low, high, side), length, where in zip(spans, lengths, place, strict=True):
        corner.append(min(max(0, low - round(where * (length - (high - low)))), side - length))
    return *corner, *lengths


def resized(image: UInt8[Tensor, "*n h w"] | Bool[Tensor, "*n h w"], box: Box, side: int) -> Tensor:
    """A window as a square: of images bilinear, of masks (boolean) nearest neighbour."""
    if image.dtype == torch.bool:
        return transforms.resized_crop(image.byte(), *box, [side, side], InterpolationMode.NEAREST) > 0
    return transforms.resized_crop(image, *box, [side, side], antialias=True)
