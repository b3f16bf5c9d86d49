"""What can be seen of the book's pages without running them; `make test` runs them, `make pages` looks at them built."""

import json
import re
from pathlib import Path

import pytest

BOOK = Path(__file__).resolve().parents[1] / "book"
PAGES = sorted(BOOK.glob("*.ipynb"))
CHAPTERS = [page for page in PAGES if page.name[0].isdigit()]


def cells(page, kind):
    return ["".join(c["source"]) for c in json.loads(page.read_text())["cells"] if c["cell_type"] == kind]


def test_every_page_is_in_the_table_of_contents():
    contents = (BOOK.parent / "_toc.yml").read_text()
    listed = re.findall(r"book/(\w+)", contents)
    assert sorted(listed) == sorted({p.stem for p in PAGES} | {"references"})
    numbers = [p.name[:2] for p in CHAPTERS]
    assert len(numbers) == len(set(numbers)), "two chapters have one number"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_no_outputs_are_stored(page):
    for cell in json.loads(page.read_text())["cells"]:
        assert not cell.get("outputs"), cell["source"]
        assert cell.get("execution_count") is None, cell["source"]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_no_number_is_typed_in_a_table(page):
    rows = [line for text in cells(page, "markdown") for line in text.splitlines() if re.match(r"\|.*\|", line)]
    typed = [row for row in rows if re.search(r"\d+\.\d", row)]
    assert not typed, "render these from a file: " + "\n".join(typed)


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_has_its_parts(page):
    text, code = "\n".join(cells(page, "markdown")), "\n".join(cells(page, "code"))
    for part in (
        "**What you will learn**",
        "## Predict before running",
        "## Exercises",
        "## Summary",
        "## Further reading",
    ):
        assert part in text, part
    assert "**Check" in text
    assert "assert" in code
    assert "NetworkDiagram(" in code
    assert "FrameSlider(" in code


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_exercise_has_a_hidden_solution(page):
    text = "\n".join(cells(page, "markdown"))
    exercises = re.findall(r"^```\{exercise\}\n:label: (\S+)", text, re.MULTILINE)
    solutions = re.findall(r"^```\{solution-start\} (\S+)\n:class: dropdown", text, re.MULTILINE)
    assert exercises == solutions
    assert len(exercises) == text.count("{solution-end}")
    assert len(exercises) >= 2 or page not in CHAPTERS


def test_labels_are_unique():
    found = [
        label
        for page in PAGES
        for text in cells(page, "markdown")
        for label in re.findall(r"^:label: (\S+)$|^\$\$ \((\S+)\)$|^\((\S+)\)=$", text, re.MULTILINE)
        for label in label
        if label
    ]
    assert len(found) == len(set(found)), sorted({label for label in found if found.count(label) > 1})
