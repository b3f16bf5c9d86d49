"""What the pages draw. Images are uint8 RGB."""

import base64
import html
import io
import json
import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.transforms import Affine2D
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hsnet.figures import FOREGROUND


def png_address(image: UInt8[np.ndarray, "h w *c"]) -> str:
    """A picture as an address (`data:`) that holds it as PNG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="png")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def heat(
    image: UInt8[np.ndarray, "h w 3"], values: Float[np.ndarray, "gh gw"], largest: float | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """The image in pale grey, brightened to orange where `values`, on a coarser grid, are high.

    Args:
        image: the picture the values belong to.
        values: 0 or more; nearest neighbour shows the cells as they are.
        largest: the value of full colour (default: the largest of `values`).
    """
    h, w = image.shape[:2]
    rows, columns = (np.arange(n) * g // n for n, g in zip((h, w), values.shape, strict=True))
    share = np.clip(values[rows][:, columns] / max(values.max() if largest is None else largest, 1e-9), 0, 1)[..., None]
    grey = 0.45 * image.mean(axis=-1, keepdims=True) + 110
    return ((1 - 0.8 * share) * grey + 0.8 * share * np.array(FOREGROUND)).astype(np.uint8)


def main_colours(vectors: Float[Tensor, "n c"]) -> Float[Tensor, "n 3"]:
    """The three directions in which vectors vary most, as red, green and blue from 0 to 1; the outermost 2 % saturate."""
    vectors = vectors - vectors.mean(dim=0)
    main = vectors @ torch.linalg.svd(vectors, full_matrices=False).Vh[:3].T  # n 3
    low, high = main.quantile(0.02, dim=0), main.quantile(0.98, dim=0)
    return ((main - low) / (high - low)).clamp(0, 1)


def channels(planes: Float[Tensor, "c h w"], columns: int, side: int = 256) -> UInt8[np.ndarray, "side side 3"]:
    """A picture of squares, one a channel, the more orange the larger a value is against the largest of all."""
    planes = planes / planes.max().clamp(min=1e-6)
    square = side // columns
    squares = F.interpolate(planes[None], (square, square))[0].unflatten(0, (-1, columns))
    picture = squares.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)[..., None]
    picture = 245 + picture * (torch.tensor([217.0, 72, 15]) - 245)
    picture[::square] = picture[:, ::square] = 60  # lines between the channels
    return picture.byte().numpy()


def kernel_matrices(kernels: dict[str, Float[Tensor, "9 9"]]) -> plt.Figure:
    """4D kernels of size 3 as matrices, query offsets by support offsets; weights that a kernel does not have are dots."""
    colours = LinearSegmentedColormap.from_list("", ["#1c7ed6", "white", "#d9480f"])
    arrows = list("↖↑↗←•→↙↓↘")  # the nine offsets; • is the centre
    rows, columns = (1, 3) if len(kernels) == 3 else (2, 2)
    figure, axes = plt.subplots(rows, columns, figsize=(2.6 * columns, 3.1 * rows), layout="constrained")
    for i, (axis, (title, matrix)) in enumerate(zip(axes.flat, kernels.items(), strict=True)):
        axis.imshow(matrix, cmap=colours, vmin=-1, vmax=1)
        y, x = (matrix == 0).nonzero().T
        axis.plot(x, y, ".", color="#adb5bd", markersize=3)
        for which in (axis.xaxis, axis.yaxis):
            which.set_ticks([n - 0.5 for n in range(10)], minor=True)
            which.set_ticks(range(9), arrows, fontsize=8)
        axis.grid(which="minor", color="#dee2e6", linewidth=0.5)
        axis.tick_params(which="minor", length=0)
        axis.set_xlabel("support offset", fontsize=9)
        axis.set_ylabel("query offset" if i % columns == 0 else "", fontsize=9)
        axis.set_title(title, fontsize=10)
    figure.patch.set_facecolor("white")
    return figure


def _height(footer: str, width: float) -> float:
    """Of the small print below a figure, in inches."""
    return 0.05 + 0.12 * len(textwrap.wrap(footer, int(21 * width)))


def small_print(figure: plt.Figure, footer: str) -> plt.Figure:
    """The figure, with a footer for attributions."""
    lines = textwrap.wrap(footer, int(21 * figure.get_figwidth()))
    figure.text(0.5, 0.01, "\n".join(lines), ha="center", va="bottom", fontsize=6, color="#444444")
    return figure


def panels(
    pictures: Sequence[tuple[str, np.ndarray]],
    marks: dict[int, tuple[float | int, float | int]] | None = None,
    footer: str = "",
) -> plt.Figure:
    """Pictures side by side, each under its title; at most three in a row, so that they are large enough on a phone.

    Args:
        pictures: (title, uint8 RGB image) each.
        marks: (x, y) in pixels of a cross to draw, by the picture's place.
        footer: small print below, for attributions.
    """
    columns = 2 if len(pictures) == 4 else min(len(pictures), 3)
    rows = -(-len(pictures) // columns)
    titles = [textwrap.fill(title.replace("IoU ", "IoU\N{NO-BREAK SPACE}"), 30) for title, _ in pictures]
    width = 2.3 * columns
    below, above = _height(footer, width), 0.15 + 0.17 * max(title.count("\n") + 1 for title in titles)  # inches
    height = rows * (2.2 + above) + below
    figure, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False)
    figure.subplots_adjust(
        left=0.01, right=0.99, bottom=below / height, top=1 - above / height, wspace=0.05, hspace=above / 2.2
    )
    figure.patch.set_facecolor("white")
    for axis in axes.flat:
        axis.axis("off")
    for i, (axis, title, (_, picture)) in enumerate(zip(axes.flat, titles, pictures, strict=False)):
        axis.imshow(picture)
        axis.set_title(title, fontsize=10, color="black")
        if marks and i in marks:
            axis.plot(*marks[i], "+", markersize=16, markeredgewidth=4, color="white")
            axis.plot(*marks[i], "+", markersize=14, markeredgewidth=2, color="black")
    return small_print(figure, footer)


def grid(
    rows: Sequence[Sequence[np.ndarray | None]],
    row_names: Sequence[str],
    column_names: Sequence[str],
    footer: str = "",
) -> plt.Figure:
    """Pictures in rows and columns, with names at the left and above.

    Args:
        rows: pictures, uint8 RGB or floats from 0 to 1, as many a row as there are columns; None leaves a place empty.
        row_names: one a row.
        column_names: one a column.
        footer: small print below, for attributions.
    """
    side, left, above = 1.45, 1.1, 0.3  # inches
    width = left + side * len(column_names)
    below = _height(footer, width)
    height = above + side * len(row_names) + below
    figure, axes = plt.subplots(len(row_names), len(column_names), figsize=(width, height), squeeze=False)
    figure.subplots_adjust(
        left=left / width, right=0.995, bottom=below / height, top=1 - above / height, wspace=0.04, hspace=0.04
    )
    figure.patch.set_facecolor("white")
    for i, (row, row_name) in enumerate(zip(rows, row_names, strict=True)):
        y = (below + (len(row_names) - i - 0.5) * side) / height
        figure.text(0.06 / width, y, row_name, va="center", fontsize=9, color="black")
        for axis, picture in zip(axes[i], row, strict=True):
            axis.axis("off")
            if picture is not None:
                axis.imshow(picture)
    for axis, name in zip(axes[0], column_names, strict=True):
        axis.set_title(name, fontsize=9, color="black", pad=4)
    return small_print(figure, footer)


def two_planes(
    query: UInt8[np.ndarray, "h w 3"],
    support: UInt8[np.ndarray, "h w 3"],
    positions: int,
    centres: tuple[tuple[int, int], tuple[int, int]],
    pairs: Float[np.ndarray, "n n"],
    titles: tuple[str, str, str] = ("query", "", "support"),
    footer: str = "",
    black: Bool[np.ndarray, "n n"] | None = None,
) -> plt.Figure:
    """A window of a 4D kernel: a square of positions in the query, one in the support, and lines for pairs of them.

    Outside the two pictures, between them their windows, enlarged and seen from the side.

    Args:
        query, support: square pictures of one size.
        positions: how many a side of either picture.
        centres: (row, column) of the middle of the window in the query, and of the one in the support.
        pairs: the kernel as a matrix, query offsets by support offsets, n = kernel_size². A line is the thicker the
            further its value is from 0, and at its thickest at 1 and -1; negative ones are blue and dashed.
        titles: above the query, the lines and the support.
        footer: small print below, for attributions.
        black: pairs whose lines are black, and lie upon the others.
    """
    k = round(len(pairs) ** 0.5)
    below, above = _height(footer, 7.2), 0.25  # inches
    figure, axis = plt.subplots(figsize=(7.2, 1.95 + below + above))
    height = figure.get_figheight()
    figure.subplots_adjust(left=0.005, right=0.995, bottom=below / height, top=1 - above / height)
    figure.patch.set_facecolor("white")
    # In sides of a picture: the enlarged windows lean by one row, so that no two of their positions are of one height.
    row, across = 1 / (k + 1), 0.12
    side, size = k / positions, round(len(query) * k / positions)
    ends = []  # (x, y) of each position of the enlarged windows
    for title, middle in zip(titles, (0.5, 1.85, 3.2), strict=True):
        axis.text(middle, -0.03, title, ha="center", va="bottom", fontsize=9)
    for n, (picture, centre) in enumerate(zip((query, support), centres, strict=True)):
        begin, corner = (0, 1.15) if n == 0 else (2.7, 2.55 - across * k)
        axis.imshow(picture, extent=(begin, begin + 1, 1, 0))
        y, x = ((place - k // 2) / positions for place in centre)
        for width, colour in ((2.5, "white"), (1.5, "black")):
            axis.add_patch(plt.Rectangle((begin + x, y), side, side, fill=False, linewidth=width, edgecolor=colour))
        # What the window shows, on a leaning plane; white beyond the picture's border.
        wide = np.pad(picture, [(size, size)] * 2 + [(0, 0)], constant_values=255)
        top, left = (round(place * len(picture)) + size for place in (y, x))
        pale = 255 - 0.6 * (255.0 - wide[top : top + size, left : left + size])
        lean = Affine2D(np.array([[across, 0, corner], [row / k, row, 0], [0, 0, 1]]))
        axis.imshow(pale.astype(np.uint8), extent=(0, k, k, 0), transform=lean + axis.transData)
        for i in range(k + 1):
            for border in ([(i, 0), (i, k)], [(0, i), (k, i)]):
                axis.plot(*lean.transform(border).T, color="black", linewidth=1.5 if i in (0, k) else 0.6, zorder=2)
        # Two lines from the window to its enlargement.
        facing = begin + x + (side if n == 0 else 0), lean.transform([(k * n, 0), (k * n, k)])
        for i in (0, 1):
            (x2, y2), style = facing[1][i], {"color": "#868e96", "linewidth": 0.6, "zorder": 1}
            axis.plot([facing[0], x2], [y + i * side, y2], **style)
        ends.append(lean.transform([(i % k + 0.5, i // k + 0.5) for i in range(k * k)]))
        axis.plot(*ends[n].T, ".", color="black", markersize=4, zorder=4)
        axis.plot(*ends[n][k * k // 2], "o", color="black", markersize=6, zorder=4)
    for i, j in zip(*pairs.nonzero(), strict=True):
        strength = min(abs(float(pairs[i, j])), 1)
        special = black is not None and bool(black[i, j])
        axis.plot(
            *zip(ends[0][i], ends[1][j], strict=True),
            "-" if pairs[i, j] > 0 else "--",
            color="black" if special else "#d9480f" if pairs[i, j] > 0 else "#1c7ed6",
            linewidth=0.3 + 2 * strength,
            alpha=0.25 + 0.75 * max(strength, 0.75 * special),  # black ones are seen through the many
            zorder=3.5 if special else 3,
        )
    axis.set_xlim(-0.01, 3.71)
    axis.set_ylim(1.01, -0.01)
    axis.set_aspect("auto")
    axis.axis("off")
    return small_print(figure, footer)


def ladder(bars: dict[str, tuple[float, tuple[float, float]]], now: str) -> plt.Figure:
    """Scores as horizontal bars with their intervals.

    Args:
        bars: mIoU in percent and its 95 % interval, by name, from top to bottom.
        now: the bar to show in colour.
    """
    figure, axis = plt.subplots(figsize=(5.2, 0.42 * len(bars) + 0.8))  # a phone shows it whole
    figure.patch.set_facecolor("white")
    for i, (name, (miou, (low, high))) in enumerate(bars.items()):
        axis.barh(i, miou, color="#d9480f" if name == now else "#9aa0a6", height=0.62)
        axis.plot([low, high], [i, i], color="black", linewidth=1.2)
        axis.text(max(high, miou) + 1, i, f"{miou:.1f}", va="center", fontsize=9)
    axis.set_yticks(range(len(bars)), list(bars), fontsize=9)
    axis.invert_yaxis()
    axis.set_xlim(0, max(60, *(high + 9 for _, (_, high) in bars.values())))
    axis.set_xlabel("mIoU in percent, and its 95 % interval", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def differences(
    bars: dict[str, tuple[Sequence[tuple[int, float, tuple[float, float]]], str]], spread: float | None
) -> plt.Figure:
    """Differences of two scores, a mark and an interval for each fold.

    Args:
        bars: by name, from top to bottom: (fold 0 to 3, difference in points, its 95 % interval) for each fold that was run,
            perhaps none; and the verdict, or "".
        spread: half the width of the grey band around zero, within which training seeds alone differ; None where that
            is not known.
    """
    figure, axis = plt.subplots(figsize=(9, 0.34 * len(bars) + 1))
    figure.patch.set_facecolor("white")
    if spread is not None:
        axis.axvspan(-spread, spread, color="#e9ecef")
    axis.axvline(0, color="black", linewidth=0.8)
    colours = {"holds": "#2b8a3e", "does not hold here": "#c92a2a"}
    reach = [spread or 0.0, 1.0]
    for i, (marks, verdict) in enumerate(bars.values()):
        for j, (fold, difference, (low, high)) in enumerate(marks):
            y, colour = i + 0.3 * (j - (len(marks) - 1) / 2), colours.get(verdict, "#495057")
            axis.barh(y, difference, height=0.24, color=colour, alpha=0.55)
            axis.plot([low, high], [y, y], color=colour, linewidth=1.6)
            axis.plot(difference, y, "osD^"[fold], color=colour, markersize=4)
            reach += [abs(low), abs(high)]
        axis.annotate(
            verdict or ("no verdict yet" if marks else "not run"),
            (1.01, i),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            color=colours.get(verdict, "#495057"),
            annotation_clip=False,
        )
    axis.set_yticks(range(len(bars)), list(bars), fontsize=8)
    axis.set_ylim(len(bars) - 0.5, -0.5)
    axis.set_xlim(-1.05 * max(reach), 1.05 * max(reach))
    axis.set_xlabel("difference of mIoU in points, with its paired 95 % bootstrap interval", fontsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


class FrameSlider:
    """Figures to step through with a slider, in a page without kernel or network: by mouse, finger or keyboard.

    Args:
        figures: at most twelve, of one size; each is drawn once, as PNG inside the page, and closed.
        labels: what the slider says at each.
        name: what the slider chooses.
        alt: what each picture shows, for those who do not see it; one text, to which the label is added.

    Raises:
        ValueError: no figure, more than twelve, or another number of labels.
    """

    def __init__(self, figures: Sequence[plt.Figure], labels: Sequence[str], name: str, alt: str):
        if not 1 <= len(figures) <= 12 or len(figures) != len(labels):
            raise ValueError(f"{len(figures)} figures and {len(labels)} labels: give 1 to 12 of each, as many of both")
        self.labels, self.name, self.alt = list(labels), name, alt
        self._pictures = []
        for figure in figures:
            file = io.BytesIO()
            figure.savefig(file, dpi=100, format="png", facecolor="white")  # as pages draw other figures
            plt.close(figure)
            self._pictures.append(base64.b64encode(file.getvalue()).decode())

    def _repr_html_(self) -> str:
        labels = [html.escape(label, quote=True) for label in self.labels]
        images = "".join(
            f'<img src="data:image/png;base64,{picture}" alt="{html.escape(self.alt, quote=True)}: {label}" '
            f'style="max-width:100%;height:auto"{" hidden" if i else ""}>'
            for i, (picture, label) in enumerate(zip(self._pictures, labels, strict=True))
        )
        words = html.escape(json.dumps(self.labels), quote=True)
        # The handler stands in the element: no script has to be loaded, and none runs twice.
        change = (
            "const box=this.closest('.hsnet-slider'),words=" + words + ",i=+this.value;"
            "box.querySelectorAll('img').forEach((image,j)=>{image.hidden=j!==i});"
            "box.querySelector('output').textContent=words[i];this.setAttribute('aria-valuetext',words[i])"
        )
        return (
            '<div class="hsnet-slider" style="background:white;color:#222;padding:.5em;border-radius:4px">'
            f'<label style="display:block">{html.escape(self.name)} '
            f'<input type="range" min="0" max="{len(labels) - 1}" value="0" step="1" aria-valuetext="{labels[0]}" '
            f'style="vertical-align:middle;width:min(18em,60%)" oninput="{change}"> <output>{labels[0]}</output></label>'
            f'<div class="hsnet-frames">{images}</div></div>'
        )


BOXES = {  # the boxes of the network's figure, in the order of the data
    "backbone": "features at many depths",
    "masking": "hide the support's background",
    "correlation": "compare all positions",
    "squeezing": "shrink the support dims",
    "mixing": "coarse to fine",
    "decoder": "context to mask",
}


class NetworkDiagram:
    """The network in one row, with the box of the current chapter lit.

    Args:
        lit: a key of `BOXES`, or "" for none.

    Raises:
        ValueError: another name.
    """

    def __init__(self, lit: str = ""):
        if lit and lit not in BOXES:
            raise ValueError(f"no box {lit!r}: choose one of {', '.join(BOXES)}")
        self.lit = lit

    def _repr_html_(self) -> str:
        arrow = '<span style="position:absolute;right:100%;top:50%;width:1.2em;transform:translateY(-50%)">→</span>'
        parts = []
        for i, (name, words) in enumerate(BOXES.items()):
            colours = "border-color:#d9480f;background:#d9480f;color:white" if name == self.lit else ""
            parts.append(
                f'<div style="position:relative;display:grid">{arrow if i else ""}'
                f'<div style="border:1px solid;border-radius:6px;padding:.4em .2em;{colours}">'
                f"<b>{name}</b><br>{html.escape(words)}</div></div>"
            )
        where = f"; this chapter: {self.lit}" if self.lit else ""
        # As many boxes in a row as there is room for: three on a phone.
        return (
            f'<div class="hsnet-network" role="img" aria-label="The network: {", ".join(BOXES)}{where}" '
            'style="display:grid;grid-template-columns:repeat(auto-fit,minmax(6.4em,1fr));gap:.8em 1.2em;'
            'max-width:60em;font:0.8em/1.35 system-ui,sans-serif;text-align:center">' + "".join(parts) + "</div>"
        )
