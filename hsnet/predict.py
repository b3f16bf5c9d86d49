"""Segment pictures like a few annotated ones.

    python -m hsnet.predict --support a.jpg a.png --support b.jpg b.png --query photos/*.jpg --out masks/
    python -m hsnet.predict --support cutout.png --query photos/ --out masks/

A support is a picture and its mask (white or 1 on the object), or a cut-out whose background is transparent. Queries are
pictures or folders of pictures. The folder of --out then holds, for each query NAME, NAME-mask.png (255 on the object, in
the query's size), NAME-overlay.jpg, and, for all of them, index.html to look at. A list of these files, written.sha256,
stays with them: the next run into the same folder removes what is listed and unchanged, and touches nothing else.

A query that cannot be read is named and left out, and the exit status is 1; masks of supports among the queries are left
out too. Without --run the weights that come with the repository are used. The side of the square that the network sees
is that of the run's training (288 pixels for emoji), or --size, within what leaves the squeezed support as it was trained
(for emoji 257 to 512).
"""

import argparse
import hashlib
import html
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image
from tqdm import tqdm

from .config import run_program
from .figures import overlay
from .pictures import find_pictures, looks_like_mask, read_image
from .runs import DEFAULT_RUN
from .segmenter import ASPECTS, METHODS, RULES, Segmenter, read_support

BATCH = 8  # queries that pass the network at once
SHOWN = 1600  # longest side of an overlay, in pixels
THUMBNAIL = 480
LIST = "written.sha256"  # of the files of a run, as sha256sum writes and checks it

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font-family: system-ui, sans-serif; }}
body {{ margin: 1rem auto; max-width: 80rem; padding: 0 1rem; }}
div {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(14rem, 1fr)); gap: 1rem; }}
figure {{ margin: 0; }} img {{ max-width: 100%; border-radius: 4px; }} figcaption {{ overflow-wrap: anywhere; }}
</style></head><body>
<h1>{title}</h1>
<p>The object in its own colours, everything else in grey. Made by {method} of the run {run} from the supports below.</p>
<h2>Supports</h2><div>
{supports}
</div><h2>Queries</h2><div>
{queries}
</div></body></html>
"""


def predict_files(
    segmenter: Segmenter, supports: list[tuple[Path, Path | None]], queries: list[Path], out: Path, run: str
) -> list[str]:
    """Write masks, overlays and the page for all queries.

    Returns:
        What went wrong, one line a query that could not be read.

    Raises:
        FileNotFoundError, ValueError: a support that does not do, see `Segmenter.fit`.
        FileExistsError: a file in `out` that would be replaced and is not ours, or is ours and read here.
        PermissionError: an `out` that cannot be written.
    """
    segmenter.fit([image for image, _ in supports], [mask for _, mask in supports])
    names = _names(queries)
    written = Written(out)
    new = [f"support-{i}.jpg" for i in range(1, len(supports) + 1)]
    new += [f"{name}-{what}" for name in names.values() for what in ("mask.png", "overlay.jpg")] + ["index.html"]
    removed = written.begin(new, [path for pair in supports for path in pair if path] + queries)
    if removed:
        print(f"removed {_count(removed, 'file')} of an earlier run from {out}", file=sys.stderr)
    figures = []
    for name, (image, mask) in zip(new, supports, strict=False):
        _save_overlay(*read_support(image, mask), out / name, THUMBNAIL)
        written.add(name)
        figures.append(_figure(name, f"{image.name}, with its mask", None))
    cells, wrong = [], []
    try:
        for query, mask in tqdm(_answers(segmenter, queries), total=len(queries), desc="segmenting", unit="picture"):
            try:
                if isinstance(mask, Exception):
                    raise mask
                pixels, _ = read_image(query, least=SHOWN)
                if looks_like_mask(pixels):
                    tqdm.write(f"warning: {query} is black and white only: is it a mask among the queries?", sys.stderr)
            except (ValueError, OSError) as error:
                wrong.append(str(error))
                tqdm.write(f"left out: {error}", file=sys.stderr)
                continue
            Image.fromarray(mask.astype(np.uint8) * 255).save(out / f"{names[query]}-mask.png")
            written.add(f"{names[query]}-mask.png")
            _save_overlay(pixels, mask, out / f"{names[query]}-overlay.jpg", SHOWN)
            written.add(f"{names[query]}-overlay.jpg")
            share = f"marked: {100 * mask.mean():.0f} % of the picture" if mask.any() else "nothing found"
            cells.append(_figure(f"{names[query]}-overlay.jpg", f"{query.name}: {share}", f"{names[query]}-mask.png"))
    finally:  # Ctrl-C leaves a page of what is done
        page = PAGE.format(
            title=f"{_count(len(cells), 'picture')} segmented",
            method=segmenter.method,
            run=html.escape(run),
            supports="\n".join(figures),
            queries="\n".join(cells),
        )
        (out / "index.html").write_text(page, encoding="utf-8")
        written.add("index.html")
    return wrong


class Written:
    """Which files of a folder are ours: those that stand in its list and are as they were written."""

    def __init__(self, folder: Path):
        self.folder = folder
        lines = (folder / LIST).read_text(encoding="utf-8").splitlines() if (folder / LIST).exists() else []
        listed = dict(reversed(line.split("  ", 1)) for line in lines if "  " in line)
        self.ours = [n for n, sha in listed.items() if Path(n).name == n and self._sha256(n) == sha]

    def begin(self, names: list[str], inputs: list[Path]) -> int:
        """Remove what an earlier run wrote, and begin a new list.

        Args:
            names: of the files that will be written.
            inputs: files that will be read.

        Returns:
            How many files were removed, those not counted that are written anew.

        Raises:
            FileExistsError: a file that is not ours would be replaced, or an input is ours; nothing was removed then.
        """
        read = {path.resolve() for path in inputs}
        for name in dict.fromkeys([*self.ours, *names]):
            path = self.folder / name
            if path.resolve() in read:
                raise FileExistsError(f"{path} is read here and would be replaced: choose another folder for --out")
            if path.exists() and name not in self.ours:
                raise FileExistsError(
                    f"{path} would be replaced, and was not written here or was changed since: move it, or choose another "
                    "folder for --out"
                )
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in self.ours:
            (self.folder / name).unlink()
        (self.folder / LIST).write_text("")
        return len({*self.ours} - {*names})

    def add(self, name: str) -> None:
        """Note a file that has just been written."""
        with (self.folder / LIST).open("a", encoding="utf-8") as file:
            file.write(f"{self._sha256(name)}  {name}\n")

    def _sha256(self, name):
        path = self.folder / name
        return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _count(n, thing):
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"


def _answers(segmenter, queries) -> Iterator[tuple[Path, np.ndarray | Exception]]:
    """Each query with its mask, or with the error that tells why it has none."""
    for begin in range(0, len(queries), BATCH):
        batch = queries[begin : begin + BATCH]
        try:
            yield from zip(batch, segmenter.predict(batch), strict=True)
        except (ValueError, OSError):  # one of them cannot be read: which?
            for query in batch:
                try:
                    yield query, segmenter.predict(query)
                except (ValueError, OSError) as error:
                    yield query, error


def _names(queries):
    """A name for each query's files: its own without suffix, with a number where two would share one."""
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for query in queries:
        name, number = query.stem, 2
        while name.lower() in taken:  # some file systems take A and a for the same
            name, number = f"{query.stem}-{number}", number + 1
        taken.add(name.lower())
        names[query] = name
    return names


def _save_overlay(pixels, mask, path, longest):
    image = Image.fromarray(pixels)
    image.thumbnail((longest, longest))
    small = Image.fromarray(mask).resize(image.size, Image.Resampling.NEAREST)
    Image.fromarray(overlay(np.asarray(image), np.asarray(small))).save(path, quality=88)


def _figure(picture, caption, mask):
    caption, picture = html.escape(caption), quote(picture)
    link = f' · <a href="{quote(mask)}">mask</a>' if mask else ""
    return (
        f'<figure><a href="{picture}"><img src="{picture}" alt="{caption}" loading="lazy"></a>'
        f"<figcaption>{caption}{link}</figcaption></figure>"
    )


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        prog="python -m hsnet.predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--support",
        nargs="+",
        action="append",
        required=True,
        metavar=("PICTURE", "MASK"),
        type=Path,
        help="an annotated picture and its mask, or one cut-out; repeat it for more supports",
    )
    parser.add_argument("--query", nargs="+", required=True, help="pictures to segment, or folders of them")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("masks"),
        help="folder for what is written (default: masks, in the current folder)",
    )
    parser.add_argument(
        "--run",
        default=DEFAULT_RUN,
        help=f"trained run, by name or folder (default: {DEFAULT_RUN}, which comes with the repository)",
    )
    parser.add_argument(
        "--rule", default="paper", help=f"how several supports decide: {', '.join(RULES)} (default: paper)"
    )
    parser.add_argument(
        "--aspect",
        default="squash",
        help=f"how a picture becomes a square: {' or '.join(ASPECTS)}, which keeps its proportions (default: squash)",
    )
    parser.add_argument(
        "--size",
        type=int,
        help="side of the squares in pixels: larger ones show more of small things and take more time (default: the training's)",
    )
    parser.add_argument(
        "--method",
        default="hsnet",
        help=f"{' or '.join(METHODS)}: the network, or the baseline of its frozen features alone; on photographs try both "
        "(default: hsnet)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, … (default: auto)")
    arguments = parser.parse_args()
    for support in arguments.support:
        if len(support) > 2:
            raise ValueError(
                f"--support takes one picture and its mask, got {len(support)} files ({', '.join(map(str, support))}): "
                "repeat --support for each pair"
            )
        if folder := next(filter(Path.is_dir, support), None):
            raise ValueError(f"{folder} is a folder: give --support PICTURE MASK for each of its pictures")
    if arguments.out.exists() and not arguments.out.is_dir():
        raise ValueError(f"--out must be a folder, and {arguments.out} is a file")
    supports = [(s[0], s[1] if len(s) == 2 else None) for s in arguments.support]
    found = find_pictures(arguments.query)
    masks = {mask.resolve() for _, mask in supports if mask}
    queries = [path for path in found if path.resolve() not in masks]
    if not queries:
        raise ValueError("there is nothing to segment: all of --query are masks of the supports")
    if len(queries) < len(found):
        print(f"left out of the queries: {_count(len(found) - len(queries), 'mask')} of the supports", file=sys.stderr)
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    print("loading the network …", file=sys.stderr, flush=True)
    segmenter = Segmenter(
        arguments.run,
        rule=arguments.rule,
        aspect=arguments.aspect,
        device=arguments.device,
        method=arguments.method,
        size=arguments.size,
    )
    wrong = predict_files(segmenter, supports, queries, arguments.out, str(arguments.run))
    print(f"{_count(len(queries) - len(wrong), 'mask')} in {arguments.out}\nlook at {arguments.out / 'index.html'}")
    if wrong:
        print(f"left out {len(wrong)} of {_count(len(queries), 'picture')}, named above", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    run_program(main)
