"""Figures of episodes and overlays. Images are uint8 RGB."""

import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Bool, UInt8

FOREGROUND = (255, 64, 0)


def overlay(
    image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], colour=FOREGROUND
) -> UInt8[np.ndarray, "h w 3"]:
    """The image with its mask: the object in its colours with an outline, everything else in pale colours."""
    picture = np.where(mask[..., None], image, 0.35 * image + 160)
    inside = mask.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            inside &= np.roll(mask, step, axis)
    picture[mask & ~inside] = colour
    return picture.astype(np.uint8)


def episode_figure(
    batch, predictions: Bool[np.ndarray, "b h w"], class_names: list[str], footer: str = ""
) -> plt.Figure:
    """One row an episode: support, query, truth, prediction with its IoU.

    Args:
        batch: a `Batch` of episodes on the CPU; the first support of each is shown.
        predictions: one mask a query.
        class_names: one name an episode.
        footer: a line below all, for attributions.
    """
    rows = len(predictions)
    columns = -(-rows // 4)  # at most four rows; further episodes stand beside them
    height = min(rows, 4)
    figure, axes = plt.subplots(height, 4 * columns, figsize=(8 * columns, 2.2 * height + 0.4), squeeze=False)
    figure.patch.set_facecolor("white")
    for axis in axes.flat:
        axis.axis("off")
    for i in range(rows):
        row = axes[i % 4][4 * (i // 4) :]
        query = batch.query[i].permute(1, 2, 0).numpy()
        truth = batch.query_mask[i].numpy()
        support = overlay(batch.support[i, 0].permute(1, 2, 0).numpy(), batch.support_mask[i, 0].numpy())
        iou = 100 * (truth & predictions[i]).sum() / max((truth | predictions[i]).sum(), 1)
        pictures = (
            (f"support: {class_names[i]}", support),
            ("query", query),
            ("truth", overlay(query, truth)),
            (f"prediction, IoU {iou:.0f}", overlay(query, predictions[i])),
        )
        for axis, (title, picture) in zip(row, pictures, strict=False):
            axis.imshow(picture)
            axis.set_title(title, fontsize=9, color="black")
    figure.tight_layout(rect=(0, 0.03 if footer else 0, 1, 1))
    if footer:
        figure.text(0.5, 0.004, footer, ha="center", va="bottom", fontsize=6, color="#444444", wrap=True)
    return figure
