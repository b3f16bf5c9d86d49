"""What the pages draw. Images are uint8 RGB."""

import base64
import html
import io
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path

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

STATIC = Path(__file__).resolve().parents[1] / "static"
INK = "#777d84"  # of what matplotlib writes and draws: readable on a light and on a dark page
plt.rcParams |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK)
plt.rcParams |= dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "none")
plt.rcParams |= {"legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False}
plt.rcParams["axes.prop_cycle"] = plt.cycler(color=["#1c7ed6", "#d9480f", "#2b8a3e", "#868e96"])


def style() -> str:
    """The rules that all HTML of this module needs."""
    return f"<style>{(STATIC / 'figures.css').read_text()}</style>"


class Shown(plt.Figure):
    """HTML that a notebook shows as it shows pyplot's figures: when its cell ends, unless it was closed before.

    A figure without axes leaves no PNG.
    """

    content = ""

    def _repr_html_(self) -> str:
        return style() + self.content


def shown(content: str) -> Shown:
    """A new figure of pyplot that holds HTML."""
    figure = plt.figure(FigureClass=Shown)
    figure.content = content
    return figure


def png_address(image: UInt8[np.ndarray, "h w *c"], kind: str = "png") -> str:
    """A picture as an address (`data:`) that holds it as PNG, or as another `kind` of file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format=kind, quality=90)
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()


def heat(
    image: UInt8[np.ndarray, "h w 3"], values: Float[np.ndarray, "gh gw"], largest: float | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """The image in pale greys, tinted orange where `values`, on a coarser grid, are high.

    Args:
        image: the picture the values belong to.
        values: 0 or more; nearest neighbour shows the cells as they are.
        largest: the value of full colour (default: the largest of `values`).
    """
    h, w = image.shape[:2]
    rows, columns = (np.arange(n) * g // n for n, g in zip((h, w), values.shape, strict=True))
    share = np.clip(values[rows][:, columns] / max(values.max() if largest is None else largest, 1e-9), 0, 1)[..., None]
    pale = 0.5 * image.mean(axis=2, keepdims=True) + 120  # an orange object is no value
    return ((1 - 0.8 * share) * pale + 0.8 * share * np.array(FOREGROUND)).astype(np.uint8)


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
    rows = (len(kernels) + 1) // 2  # two beside each other are read on a phone
    figure, axes = plt.subplots(rows, 2, figsize=(5.4, 3.2 * rows), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.12)  # inches; below, a title follows a label
    for axis in axes.flat[len(kernels) :]:
        axis.axis("off")
    for i, (axis, (title, matrix)) in enumerate(zip(axes.flat, kernels.items(), strict=False)):
        axis.imshow(matrix, cmap=colours, vmin=-1, vmax=1)
        y, x = (matrix == 0).nonzero().T
        axis.plot(x, y, ".", color="#adb5bd", markersize=3)
        axis.spines[["top", "right"]].set_visible(True)
        for which in (axis.xaxis, axis.yaxis):
            which.set_ticks([n - 0.5 for n in range(10)], minor=True)
            which.set_ticks(range(9), arrows)
        axis.grid(which="minor", color="#dee2e6", linewidth=0.5)
        axis.tick_params(which="minor", length=0)
        axis.set_xlabel("support offset")
        axis.set_ylabel("query offset" if i % 2 == 0 else "")
        axis.set_title(title, fontsize=10)
    return figure


def _picture(title: str, image: np.ndarray, mark: tuple[float | int, float | int] | None = None) -> str:
    image = np.asarray(image)
    if image.dtype != np.uint8:
        image = (255 * image).astype(np.uint8)
    times = max(1, 256 // max(image.shape[:2]))  # positions stay squares where a browser enlarges them
    image = np.ascontiguousarray(image.repeat(times, 0).repeat(times, 1))
    if mark is not None:
        x, y = (round(place * times) for place in mark)
        for arm, half, grey in ((13, 3, 255), (11, 1, 0)):
            for dx, dy in ((arm, half), (half, arm)):
                image[max(y - dy, 0) : y + dy + 1, max(x - dx, 0) : x + dx + 1] = grey
    name = html.escape(title, quote=True)
    return f'<figure><figcaption>{name}</figcaption><img src="{png_address(image, "webp")}" alt="{name}"></figure>'


def panels(
    pictures: Sequence[tuple[str, np.ndarray]], marks: dict[int, tuple[float | int, float | int]] | None = None
) -> Shown:
    """Pictures side by side, each below its title: at most three in a row, and two on a phone.

    Args:
        pictures: (title, RGB image, uint8 or floats from 0 to 1) each.
        marks: (x, y) in pixels of a cross to draw, by the picture's place.
    """
    columns = 2 if len(pictures) == 4 else min(len(pictures), 3)
    drawn = (_picture(*picture, (marks or {}).get(i)) for i, picture in enumerate(pictures))
    return shown(f'<div class="hsnet-panels" style="--columns:{columns}">{"".join(drawn)}</div>')


def grid(rows: Sequence[Sequence[np.ndarray | None]], row_names: Sequence[str], column_names: Sequence[str]) -> Shown:
    """Pictures in rows and columns, with names at the left and above; on a phone each row is a block of its own.

    Args:
        rows: RGB images, uint8 or floats from 0 to 1, as many a row as there are columns; None leaves a place empty.
        row_names: one a row.
        column_names: one a column.
    """
    parts = []
    for row, row_name in zip(rows, row_names, strict=True):
        drawn = (
            f"<figure><figcaption>{html.escape(name)}</figcaption></figure>"
            if picture is None
            else _picture(name, picture)
            for picture, name in zip(row, column_names, strict=True)
        )
        parts.append(f"<div><b>{html.escape(row_name)}</b>{''.join(drawn)}</div>")
    columns = len(column_names)
    narrow = 2 if columns == 4 else min(columns, 3)
    return shown(f'<div class="hsnet-grid" style="--columns:{columns};--narrow:{narrow}">{"".join(parts)}</div>')


def two_planes(
    query: UInt8[np.ndarray, "h w 3"],
    support: UInt8[np.ndarray, "h w 3"],
    positions: int,
    centres: tuple[tuple[int, int], tuple[int, int]],
    pairs: Float[np.ndarray, "n n"],
    titles: tuple[str, str, str] = ("query", "", "support"),
    special: Bool[np.ndarray, "n n"] | None = None,
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
        special: pairs whose lines are blue, and lie upon the others.
    """
    k = round(len(pairs) ** 0.5)
    figure, axis = plt.subplots(figsize=(5.5, 1.95))
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.01, top=0.79)
    # In sides of a picture: the enlarged windows lean by one row, so that no two of their positions are of one height.
    row, across = 1 / (k + 1), 0.12
    side, size = k / positions, round(len(query) * k / positions)
    ends = []  # (x, y) of each position of the enlarged windows
    for title, middle in zip(titles, (0.5, 1.85, 3.2), strict=True):
        axis.text(middle, -0.03, title, ha="center", va="bottom")
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
                axis.plot(*lean.transform(border).T, color=INK, linewidth=1.5 if i in (0, k) else 0.6, zorder=2)
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
        upon = special is not None and bool(special[i, j])
        axis.plot(
            *zip(ends[0][i], ends[1][j], strict=True),
            "-" if pairs[i, j] > 0 else "--",
            color="#d9480f" if pairs[i, j] > 0 and not upon else "#1c7ed6",
            linewidth=0.3 + 2 * strength + upon,
            alpha=0.25 + 0.75 * max(strength, upon),  # these are seen through the many
            zorder=3.5 if upon else 3,
        )
    axis.set_xlim(-0.01, 3.71)
    axis.set_ylim(1.01, -0.01)
    axis.set_aspect("auto")
    axis.axis("off")
    return figure


def ladder(bars: dict[str, tuple[float, tuple[float, float]]], now: str) -> Shown:
    """Scores as horizontal bars with their intervals.

    Args:
        bars: mIoU in percent and its 95 % interval, by name, from top to bottom.
        now: the bar to show in colour.
    """
    end = max(60, *(high for _, (_, high) in bars.values())) + 15  # room for the number on a phone
    rows = [
        f'<span>{html.escape(name)}</span><div><i style="width:{100 * miou / end:.1f}%"{" class=now" * (name == now)}></i>'
        f'<u style="left:{100 * low / end:.1f}%;width:{100 * (high - low) / end:.1f}%"></u>'
        f'<b style="left:{100 * high / end:.1f}%">{miou:.1f}</b></div>'
        for name, (miou, (low, high)) in bars.items()
    ]
    rows.append("<span></span><small>mIoU in percent, and its 95 % interval</small>")
    return shown(f'<div class="hsnet-ladder">{"".join(rows)}</div>')


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
    figure, axis = plt.subplots(figsize=(5.5, 0.5 * len(bars) + 1))
    if spread is not None:
        axis.axvspan(-spread, spread, color="#868e96", alpha=0.6)
    axis.axvline(0, color=INK, linewidth=0.4)
    colours = {"holds": "#2b8a3e", "does not hold here": "#c92a2a"}
    reach = [spread or 0.0, 1.0]
    for i, (marks, verdict) in enumerate(bars.values()):
        for j, (fold, difference, (low, high)) in enumerate(marks):
            y, colour = i + 0.3 * (j - (len(marks) - 1) / 2), colours.get(verdict, INK)
            axis.barh(y, difference, height=0.24, color=colour, alpha=0.55)
            axis.plot([low, high], [y, y], color=colour, linewidth=1.6)
            axis.plot(difference, y, "osD^"[fold], color=colour, markersize=4)
            reach += [abs(low), abs(high)]
        axis.annotate(
            verdict or ("no verdict yet" if marks else "not run"),
            (1.01, i),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=9,
            color=colours.get(verdict, INK),
            annotation_clip=False,
        )
    axis.set_yticks(range(len(bars)), [textwrap.fill(name, 27) for name in bars], fontsize=9, linespacing=1)
    axis.set_ylim(len(bars) - 0.5, -0.5)
    axis.set_xlim(-1.05 * max(reach), 1.05 * max(reach))
    axis.set_xlabel("difference of mIoU in points,\nwith its 95 % interval")
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
        self._frames = []
        for figure in figures:
            if isinstance(figure, Shown):
                self._frames.append(figure.content)
            else:
                file = io.BytesIO()
                figure.savefig(
                    file, dpi=100, format="png", facecolor=figure.get_facecolor()
                )  # as pages draw other figures
                picture = base64.b64encode(file.getvalue()).decode()
                words = html.escape(name, quote=True)
                self._frames.append(f'<img class="chart" src="data:image/png;base64,{picture}" alt="{words}">')
            plt.close(figure)

    def _repr_html_(self) -> str:
        labels = [html.escape(label, quote=True) for label in self.labels]
        alt = html.escape(self.alt, quote=True)
        frames = "".join(
            f'<div class="hsnet-frame" role="img" aria-label="{alt}: {label}"{" hidden" if i else ""}>{frame}</div>'
            for i, (frame, label) in enumerate(zip(self._frames, labels, strict=True))
        )
        words = html.escape(json.dumps(self.labels), quote=True)
        # The handler stands in the element: no script has to be loaded, and none runs twice.
        change = (
            "const box=this.closest('.hsnet-slider'),words=" + words + ",i=+this.value;"
            "box.querySelectorAll('.hsnet-frame').forEach((frame,j)=>{frame.hidden=j!==i});"
            "box.querySelector('output').textContent=words[i];this.setAttribute('aria-valuetext',words[i])"
        )
        return style() + (
            f'<div class="hsnet-slider"><label>{html.escape(self.name)} '
            f'<input type="range" min="0" max="{len(labels) - 1}" value="0" step="1" aria-valuetext="{labels[0]}" '
            f'oninput="{change}"> <output>{labels[0]}</output></label><div class="hsnet-frames">{frames}</div></div>'
        )


BOXES = ("backbone", "masking", "correlation", "squeezing", "mixing", "decoder")  # in the order of the data


class NetworkDiagram:
    """The network after Figure 2 of the paper, at the pages' size, with the boxes of the current chapter lit.

    The drawing is `static/network-wide.svg`, on a phone `static/network-tall.svg`.

    Args:
        lit: names in `BOXES`.

    Raises:
        ValueError: another name.
    """

    def __init__(self, *lit: str):
        self.lit = lit
        for box in lit:
            if box not in BOXES:
                raise ValueError(f"no box {box!r}: choose from {', '.join(BOXES)}")

    def _repr_html_(self) -> str:
        drawings = "".join(
            (STATIC / f"network-{form}.svg").read_text().replace("<svg", f'<svg class="{form}"', 1)
            for form in ("wide", "tall")
        )
        for box in self.lit:
            drawings = drawings.replace(f'class="box {box}"', f'class="box {box} lit"')
        where = f"; this chapter: {', '.join(self.lit)}" if self.lit else ""
        label = f'role="img" aria-label="The network: {", ".join(BOXES)}{where}"'
        return f'{style()}<div class="hsnet-network" {label}>{drawings}</div>'
