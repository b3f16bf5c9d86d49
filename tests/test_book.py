"""What can be seen of the book's pages without running them; `make test` runs them, `make pages` looks at them built."""

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from unittest import mock

import pytest
from helpers import BOOK, QUESTIONS, python
from kit import tables
from kit.publish import FIRST_CELL, publish, published

import hsnet

PAGES = sorted(BOOK.glob("*.ipynb"))
TABLES = [page for page in tables.PAGES if "runs" not in page.parts]
CHAPTERS = [page for page in PAGES if page.name[0].isdigit()]


def cells(page, kind):
    return ["".join(c["source"]) for c in json.loads(page.read_text())["cells"] if c["cell_type"] == kind]


def test_every_page_is_in_the_table_of_contents():
    contents = (BOOK.parent / "_toc.yml").read_text()
    listed = re.findall(r"book/(\w+)", contents)
    assert sorted(listed) == sorted({p.stem for p in [*PAGES, *BOOK.glob("*.md")]}), "_toc.yml lists each page once"
    numbers = [p.name[:2] for p in CHAPTERS]
    assert len(numbers) == len(set(numbers)), "two chapters have one number"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_cells(page):
    code, text = cells(page, "code"), "\n".join(cells(page, "markdown"))
    address, branch = published()
    first = FIRST_CELL.format(address=address, branch=branch)
    every = json.loads(page.read_text())["cells"]
    assert "".join(every[0]["source"]) == first, "run python book/kit/publish.py"
    assert every[0]["metadata"]["tags"] == ["remove-cell"]
    for cell in every:
        source, tags = "".join(cell["source"]), set(cell["metadata"].get("tags", []))
        assert not any(map(cell.get, ("outputs", "execution_count"))), f"run .venv/bin/nbstripout {page}"
        # nbclient now and then waits for ever in a cell whose widget holds an Output (its issue 312), so such cells are
        # not executed with the pages; what they draw, the page's slider draws with the same function.
        if cell["cell_type"] == "code" and re.search(r"ipywidgets\.interact|Workbench\(", source):
            assert {"remove-output", "skip-execution"} <= tags, source
        if {"hide-input", "hide-cell"} & tags:
            assert len(source.splitlines()) <= 25, f"move what it defines to book/kit:\n{source}"
    # 88 characters are what `book.css` leaves room for, on a desk, also in hidden solutions.
    blocks = re.findall(r"^```(?:bash|python)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    wide = [line for source in [*code[1:], *blocks] for line in source.splitlines() if len(line) > 88]
    assert not wide, "wrap these:\n" + "\n".join(wide)
    artists = [source for source in code if re.search(r"Markdown\(.*\.attribution", source)]
    assert len(artists) == any(re.search(r'emoji\(\)|"emoji"', source) for source in code), "name them once"


@pytest.mark.parametrize("page", [*PAGES, *TABLES], ids=lambda p: p.stem)
def test_no_number_is_typed_in_a_table(page):
    text = "\n".join(cells(page, "markdown")) if page in PAGES else page.read_text()
    text = re.sub(r"<!-- \S+ \S+ -->\n.*?<!-- end -->", "", text, flags=re.DOTALL)
    rows = [line for line in text.splitlines() if re.match(r"\s*\|.*\|", line)]
    typed = [row for row in rows if re.search(r"\d+\.\d", row)]
    assert not typed, "render these from a file: " + "\n".join(typed)


@pytest.mark.parametrize("page", CHAPTERS, ids=lambda p: p.stem)
def test_a_chapter_has_its_parts(page):
    text, code = "\n".join(cells(page, "markdown")), "\n".join(cells(page, "code"))
    parts = "**What you will learn**", "## Predict before running", "## Exercises", "## Summary", "## Further reading"
    assert not [part for part in (*parts, "**Check") if part not in text]
    assert not [part for part in ("assert", "NetworkDiagram(", "FrameSlider(") if part not in code]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_exercise_has_a_hidden_solution(page):
    text = "\n".join(cells(page, "markdown"))
    exercises = re.findall(r"^```\{exercise\}\n:label: (\S+)", text, re.MULTILINE)
    solutions = re.findall(r"^```\{solution-start\} (\S+)\n:class: dropdown", text, re.MULTILINE)
    assert exercises == solutions
    assert len(exercises) == text.count("{solution-end}")
    assert len(exercises) >= 2 or page not in CHAPTERS


@pytest.mark.parametrize("words", QUESTIONS)
def test_a_question_is_answered_in_the_words_people_use(words):
    answers = (BOOK / "questions.md").read_text().split("\n## ")[1:]
    [answer] = [text for text in answers if words.lower() in text.partition("\n")[0].lower()]
    linked = re.findall(r"\{doc\}`(\w+)`", answer)
    assert linked, "no page is named that has the long answer"
    assert set(linked) <= {p.stem for p in [*PAGES, *BOOK.glob("*.md")]}


def test_the_reference_has_every_public_name():
    named = re.findall(r"^\.\. auto\w+:: hsnet\.(\w+)$", (BOOK / "api.md").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(hsnet.__all__)


def test_the_first_cell_fetches_the_library_where_it_is_missing(monkeypatch):
    manager = pytest.importorskip("IPython.core.inputtransformer2").TransformerManager()
    monkeypatch.setattr(sys, "path", list(sys.path))
    shell = mock.Mock()

    def run(address, found):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
        source = manager.transform_cell(FIRST_CELL.format(address=address, branch="main"))
        exec(source, {"get_ipython": lambda: shell})

    run("https://github.com/somebody/hsnet", found=object())
    assert not shell.method_calls
    run("https://github.com/somebody/hsnet", found=None)
    shell.system.assert_called_once_with("git clone --depth=1 --branch={branch} {address}")
    shell.run_line_magic.assert_called_once_with("pip", "install --editable {folder}")
    assert sys.path[0] == str(Path("hsnet").resolve())
    with pytest.raises(ModuleNotFoundError, match="make test"):
        run("", found=None)


@pytest.fixture
def small_book(tmp_path):
    """A checkout whose book is the introduction and a chapter."""
    for name in ("_config.yml", "README.md", "book/references.md", "book/references.bib"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(BOOK.parent / name, tmp_path / name)
    for name in ("static", "vendor", "extension"):
        shutil.copytree(BOOK / name, tmp_path / "book" / name)
    for name in ("intro", "01_few_shot_segmentation"):
        notebook = json.loads((BOOK / f"{name}.ipynb").read_text())
        title = next(cell for cell in notebook["cells"] if cell["cell_type"] == "markdown")
        title["source"] = [f"# {name}"]
        notebook["cells"] = [notebook["cells"][0], title]
        (tmp_path / "book" / f"{name}.ipynb").write_text(json.dumps(notebook))
    contents = "format: jb-book\nroot: book/intro\nchapters:\n- file: book/01_few_shot_segmentation\n"
    (tmp_path / "_toc.yml").write_text(contents + "- file: book/references\n")
    return tmp_path


def test_launch_buttons(small_book):
    pytest.importorskip("jupyter_book")
    publish("https://github.com/somebody/hsnet", "main", small_book)
    program = "import sys; from jupyter_book.cli.main import main; sys.exit(main())"
    python("-c", program, "build", small_book, "--all", "--keep-going")
    page = (small_book / "_build" / "html" / "book" / "01_few_shot_segmentation.html").read_text()
    notebook = "book/01_few_shot_segmentation.ipynb"
    assert f"https://colab.research.google.com/github/somebody/hsnet/blob/main/{notebook}" in page
    assert f"https://mybinder.org/v2/gh/somebody/hsnet/main?urlpath=lab/tree/{notebook}" in page
    assert "_sources/book/01_few_shot_segmentation.ipynb" in page  # the download button
    assert "find_spec" not in page
    assert (small_book / "README.md").read_text().count("[![Open") == 2


def test_publishing_again_changes_nothing_and_can_be_undone(small_book):
    files = [path for path in small_book.rglob("*") if path.suffix in (".ipynb", ".md", ".yml")]
    publish("", "main", small_book)
    without = [path.read_text() for path in files]
    publish("https://github.com/somebody/hsnet/", "main", small_book)
    once = [path.read_text() for path in files]
    assert published(small_book) == ("https://github.com/somebody/hsnet", "main")
    publish("https://github.com/somebody/hsnet.git", "main", small_book)
    assert [path.read_text() for path in files] == once != without
    publish("", "main", small_book)
    assert [path.read_text() for path in files] == without
    with pytest.raises(ValueError, match=r"gitlab.*github\.com/NAME"):
        publish("https://gitlab.com/somebody/hsnet", "main", small_book)
