"""Names each place of the texts that holds an expression of `book/words.txt`, and what to write instead.

PYTHONPATH=book python -m kit.words      exit status 1 if there is one
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATTERNS = "README.md", "book/*.md", "book/*.ipynb", "book/kit/*.py", "data/**/README.md", "hsnet/**/*.py"


def words() -> list[list[str]]:
    """The rows of `book/words.txt`: an expression, its successor and the files in which it may stand."""
    lines = (ROOT / "book" / "words.txt").read_text().splitlines()
    rows = [[part.strip() for part in line.split("|")] for line in lines if not line.startswith("#")]
    return [[*row, ""][:3] for row in rows]


def texts(path: Path) -> Iterator[tuple[str, str]]:
    """The parts of a file, each with its place: a notebook's cells, captions and alternative texts, or the whole file.

    Code in backticks is left out.
    """
    if path.suffix == ".ipynb":
        for i, cell in enumerate(json.loads(path.read_text())["cells"]):
            shown = [cell["metadata"].get("mystnb", {}).get(what, {}) for what in ("figure", "image")]
            described = "\n".join(value for one in shown for value in one.values() if isinstance(value, str))
            for part, text in (("line", "".join(cell["source"])), ("caption, line", described)):
                yield f"{path.relative_to(ROOT)}, cell {i}, {part} ", re.sub(r"`[^`\n]*`", "", text)
    else:
        yield f"{path.relative_to(ROOT)}:", re.sub(r"`[^`\n]*`", "", path.read_text())


def lines(text: str, expression: str) -> list[int]:
    """Where it stands in a text: the numbers of its lines, from 1."""
    between = r"""[\s#"']+"""  # two words: the end of a line too, in a comment or in a string
    pattern = rf"\b{between.join(expression.split())}\b"
    return [1 + text.count("\n", 0, match.start()) for match in re.finditer(pattern, text, re.IGNORECASE)]


def main() -> int:
    """The program."""
    found = []
    for path in sorted(path for pattern in PATTERNS for path in ROOT.glob(pattern)):
        for place, text in texts(path):
            for expression, successor, allowed in words():
                if str(path.relative_to(ROOT)) not in allowed.split():
                    found += [f"{place}{n}: “{expression}”: write “{successor}”" for n in lines(text, expression)]
    print("\n".join(found) or "no expression of book/words.txt was found")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
