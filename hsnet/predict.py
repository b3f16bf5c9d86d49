"""Segment images from a few annotated ones.

    python -m hsnet.predict --support a.jpg a.png --support b.jpg b.png --query photos/*.jpg --out masks/
    python -m hsnet.predict --support cutout.png --query photos/ --out masks/

A support is an image with its mask (white or 1 on the object) or with annotations of labelme or COCO (.json), or a cut-out with
a transparent background; the book's page own_files defines the meaning of each kind of file. --label selects the object
where a mask contains several values, colours or names. Queries are images, folders of images, or patterns such as "*.jpg".
The program writes NAME-mask.png (255 on the object, at the query's size) and NAME-overlay.jpg (the object in its own colours,
everything else in pale colours) for each query NAME. It refuses an output folder that contains files unless --overwrite is given, which
replaces files of the same names and keeps the others.

Mask files of supports are skipped if they are among the queries. A query that cannot be read is reported and skipped, and the exit status
is then 1. The default weights take two passes: the whole query at two sizes, then a window around what was found. With --size, of 257
to 512 pixels, they process the whole image once, which takes less time. Try photographs with and without --size.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from .config import command_line, run_program
from .figures import overlay
from .pictures import counted, find_pictures, read_image
from .runs import DEFAULT_RUN
from .segmenter import METHODS, RULES, Segmenter, read_support

SHOWN = 1600  # longest side of an overlay, in pixels


def predict_files(segmenter: Segmenter, queries: list[Path], out: Path) -> list[str]:
    """Write the mask and the overlay of each query.

    Args:
        segmenter: fitted.

    Returns:
        What went wrong, one line a query that could not be read.

    Raises:
        PermissionError: an `out` that cannot be written.
    """
    names = dict(zip(queries, unique_names([query.stem for query in queries]), strict=True))
    out.mkdir(parents=True, exist_ok=True)
    wrong = []
    for query in tqdm(queries, desc="segmenting", unit="image"):
        try:
            mask = segmenter.predict(query)
            pixels, _ = read_image(query, SHOWN, segmenter.exif)
        except (ValueError, OSError) as error:
            wrong.append(str(error))
            tqdm.write(f"skipped: {error}", file=sys.stderr)
            continue
        Image.fromarray(mask.astype(np.uint8) * 255).save(out / f"{names[query]}-mask.png")
        image = Image.fromarray(pixels)
        image.thumbnail((SHOWN, SHOWN))
        small = Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST)
        shown = overlay(np.asarray(image), np.asarray(small))
        Image.fromarray(shown).save(out / f"{names[query]}-overlay.jpg", quality=88)
    return wrong


def check_out(out: Path, inputs: list[Path], overwrite: bool) -> None:
    """Refuse a folder in which something could be lost.

    Raises:
        ValueError: a file, or a folder that holds an input.
        FileExistsError: a folder that holds files, without `overwrite`.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out must be a folder, and {out} is a file")
    if inside := next((path for path in inputs if path.resolve().parent == out.resolve()), None):
        raise ValueError(f"the output folder {out} contains the input {inside}: choose another folder for --out")
    if not overwrite and out.is_dir() and any(out.iterdir()):
        raise FileExistsError(f"{out} holds files: choose another folder for --out, or replace them with --overwrite")


def unique_names(names: list[str]) -> list[str]:
    """The names, with a number behind those that stand earlier in the list, in whichever case."""
    taken: list[str] = []
    for name in names:
        other, number = name, 2
        while other.lower() in (t.lower() for t in taken):  # some file systems take A and a for the same
            other, number = f"{name}-{number}", number + 1
        taken.append(other)
    return taken


def _parser():
    parser = command_line("predict", __doc__)
    option = parser.add_argument
    support = "an image and its mask or annotations, or one cut-out; repeat it for more supports"
    option("--support", nargs="+", action="append", required=True, metavar=("IMAGE", "MASK"), type=Path, help=support)
    option("--label", help="value (3), colour (255,0,0) or name of the object, where a mask contains several")
    option("--query", nargs="+", required=True, help="images to segment, or folders of images")
    option("--out", type=Path, default=Path("masks"), help="output folder (default: masks)")
    option("--overwrite", action="store_true", help="write into a folder that contains files")
    option("--run", default=DEFAULT_RUN, help=f"trained run, by name or folder (default: {DEFAULT_RUN})")
    option("--rule", help=f"how several supports decide: {', '.join(RULES)} (default: the weights' own)")
    option("--aspect", default="resize", help="resize ignores the aspect ratio, pad keeps it (default: resize)")
    option("--exif", default="apply", help="apply or ignore the rotation stored by cameras (default: apply)")
    option("--size", type=int, help="side of the resized images in pixels, in one pass (default: two passes)")
    option("--method", default="hsnet", help=f"{' or '.join(METHODS)}, the baseline (default: hsnet)")
    option("--device", default="auto", help="auto, cpu, cuda, … (default: auto)")
    return parser


def main() -> None:
    """The program."""
    arguments = _parser().parse_args()
    for support in arguments.support:
        if len(support) > 2:
            raise ValueError(
                f"--support takes one image and its mask, got {len(support)} files ({', '.join(map(str, support))}): "
                "repeat --support for each pair"
            )
        if folder := next(filter(Path.is_dir, support), None):
            raise ValueError(f"{folder} is a folder: give --support IMAGE MASK for each of its images")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    pairs = [(s[0], s[1] if len(s) == 2 else None) for s in arguments.support]
    found, unused = find_pictures(arguments.query)
    masks = {mask.resolve() for _, mask in pairs if mask}
    queries = [path for path in found if path.resolve() not in masks]
    if not queries:
        raise ValueError("nothing to segment: every file of --query is a mask of a support")
    check_out(arguments.out, [*queries, *(path for pair in pairs for path in pair if path)], arguments.overwrite)
    supports = [read_support(*pair, arguments.label, arguments.exif) for pair in pairs]
    for line in unused:
        print(line, file=sys.stderr)
    if len(queries) < len(found):
        print(f"not segmented: {counted(len(found) - len(queries), 'mask')} of the supports", file=sys.stderr)
    print("loading the network …", file=sys.stderr, flush=True)
    options = {key: getattr(arguments, key) for key in ("rule", "aspect", "device", "method", "size", "exif")}
    segmenter = Segmenter(arguments.run, **options).fit_supports(supports)
    wrong = predict_files(segmenter, queries, arguments.out)
    print(f"{counted(len(queries) - len(wrong), 'mask')} in {arguments.out}, each with an overlay to look at")
    if wrong:
        print(f"skipped {len(wrong)} of {counted(len(queries), 'image')}, named above", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    run_program(main)
