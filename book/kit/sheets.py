"""Contact sheets of the emoji benchmark, to look at all drawings: `PYTHONPATH=book python -m kit.sheets FOLDER`."""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hsnet.benchmarks.emoji import Emoji
from hsnet.benchmarks.sprites import ATTRIBUTION, SETS, Concept, Sprites

ROWS = 14  # of a sheet


def contact_sheet(concepts: list[Concept], sprites: Sprites) -> Image.Image:
    """An RGB picture to look at: a row for each concept, a column for each set, the attribution below."""
    cell, label, header = 96, 170, 20
    background = np.array([214, 190, 240])  # a colour no artist uses much, so holes in a drawing show
    sheet = Image.new("RGB", (label + len(SETS) * (cell + 4), header + len(concepts) * (cell + 4) + 32), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for column, icons in enumerate(SETS):
        pen.text((label + column * (cell + 4), 4), icons.name, "black", font)
    for row, concept in enumerate(concepts):
        y = header + row * (cell + 4)
        text = f"{concept.id}  {concept.name}\n{concept.group}\nfamily: {concept.family}\nfold {concept.fold}"
        pen.text((4, y + 16), text, "black", font)
        for column, icons in enumerate(SETS):
            if icons.name in concept.drawings:
                sprite = sprites.image(concept.id, icons.name).astype(float)
                pixels = sprite[..., :3] + background * (1 - sprite[..., 3:] / 255)
                drawing = Image.fromarray(pixels.round().astype(np.uint8)).resize((cell, cell))
                sheet.paste(drawing, (label + column * (cell + 4), y))
    half = ATTRIBUTION.index("Firefox")
    pen.text((4, sheet.height - 30), ATTRIBUTION[:half] + "\n" + ATTRIBUTION[half:], "black", font)
    return sheet


def main() -> None:
    """The program."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    emoji = Emoji()
    for first in range(0, len(emoji.concepts), ROWS):
        sheet = contact_sheet(emoji.concepts[first : first + ROWS], emoji.sprites)
        sheet.save(folder / f"sheet-{first:03d}.png")


if __name__ == "__main__":
    main()
