"""What the pages of the book share: one query that shows two objects, and the episodes of the ladder of scores.

As a program it makes the pages open on Colab and Binder. It writes the repository's address where it is needed: into
`_config.yml`, whose pages then have launch buttons; into the first cell of every notebook, which fetches the library
where it is missing; and as badges into README.md. Build the book again afterwards: `make book`.

    python -m hsnet.book --address https://github.com/NAME/REPOSITORY
    python -m hsnet.book    # the address as `_config.yml` has it, into pages that were added since
"""

import argparse
import ast
import inspect
import json
import os
import re
import textwrap
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from .benchmarks import Benchmark, Episode, load_benchmark
from .config import Config, paper, run_program
from .episodes import EpisodeDataset, test_episodes
from .metrics import SegmentationScore
from .records import ROOT, markdown, run_score, write_json

RUN = "emoji-fold0-long"  # the trained network the pages show
LAPTOP_RUN = Config().run  # what `make train` leaves
SIZE = 256  # pixels a side

THREAD = 136  # place of the pages' query among the 5-shot test episodes: a videocassette and a light bulb
LADDER = 200  # so many test episodes carry the ladder: the first ones of the 1000 that every table uses


def emoji() -> Benchmark:
    """The embedded benchmark at the size of the pages."""
    return load_benchmark("emoji", size=SIZE)


def thread(benchmark: Benchmark, shot: int = 1) -> list[Episode]:
    """The query that is followed through the book, asked for its videocassette (by up to five supports), then its bulb (one)."""
    first = test_episodes(benchmark, fold=0, shot=5)[THREAD]
    return [replace(first, supports=first.supports[:shot]), *benchmark.other_questions(first)]


def ladder_episodes(benchmark: Benchmark) -> EpisodeDataset:
    """The episodes on which every chapter scores what it has built so far."""
    return EpisodeDataset(benchmark, SIZE, test_episodes(benchmark, fold=0, shot=1)[:LADDER])


def rung(chapter: int, name: str, score: SegmentationScore) -> dict[str, tuple[float, tuple[float, float]]]:
    """The ladder up to a chapter, for `figures.ladder`: mIoU and interval of each rung so far, and the trained network's.

    The rungs of all chapters are stored in `data/ladder.json`. A chapter's own is written there when it is executed with
    `HSNET_LADDER=write`, and otherwise compared with what is stored.

    Args:
        chapter: number of the chapter that measured `score`; 1 begins the ladder.
        name: what the bar says.

    Raises:
        ValueError: the score is not the stored one (by more than a point, for processors round differently), or is not
            stored.
    """
    path = ROOT / "data" / "ladder.json"
    rungs = {r["name"]: r for r in json.loads(path.read_text())["rungs"]} if path.exists() else {}
    if os.environ.get("HSNET_LADDER") == "write":
        rungs[name] = {"chapter": chapter, "name": name, "miou": score.miou(), "interval": list(score.interval())}
        ordered = sorted(rungs.values(), key=lambda r: r["chapter"])
        write_json(path, {"episodes": LADDER, "run": RUN, "rungs": ordered})
    stored = rungs.get(name)
    if stored is None or abs(stored["miou"] - score.miou()) > 1:
        raise ValueError(
            f"{name!r} scores {score.miou():.1f}, {path} has {stored and round(stored['miou'], 1)}: if the change is "
            "meant, execute the chapter with HSNET_LADDER=write"
        )
    so_far = [r for r in rungs.values() if r["chapter"] < chapter or r["name"] == name]
    bars = {r["name"]: (r["miou"], tuple(r["interval"])) for r in sorted(so_far, key=lambda r: r["chapter"])}
    trained = run_score(RUN, shot=1, count=LADDER)
    return bars | {"HSNet, trained": (trained.miou(), trained.interval())}


def as_image(tensor: UInt8[Tensor, "3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """A picture of a `Batch`, to be drawn."""
    return tensor.permute(1, 2, 0).numpy()


def reference(name: str) -> str:
    """Markdown: what the library says of one of its public names, from the code and its docstrings.

    Raises:
        AttributeError: a name that is not public.
    """
    thing = getattr(import_module("hsnet"), name)
    if isinstance(thing, dict):
        return markdown(["name", "what"], [[f"`{k}`", inspect.getdoc(v).splitlines()[0]] for k, v in thing.items()])
    parts = [_signature(thing, name), _prose(inspect.getdoc(thing))]
    if name == "Config":
        of_paper = paper("pascal")
        rows = [
            [f"`{f.name}`", f"`{f.default!r}`", f"`{getattr(of_paper, f.name)!r}`", f.metadata["help"]]
            for f in fields(Config)
        ]
        parts.append(markdown(["setting", "default", "of `paper('pascal')`", "meaning"], rows))
    methods = {} if not inspect.isclass(thing) else vars(thing)
    for method, function in methods.items():
        function = getattr(function, "__func__", function)  # of a class method
        if inspect.isfunction(function) and not method.startswith("_") and inspect.getdoc(function):
            parts += [_signature(function, f"{name}.{method}"), _prose(inspect.getdoc(function))]
    return "\n\n".join(parts)


def _signature(thing, name: str) -> str:
    """As the source has it: with the shapes."""
    definition = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]
    if isinstance(definition, ast.ClassDef):
        inner = [part for part in definition.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
        if not inner:  # a dataclass
            return f"```python\nclass {name}\n```"
        definition = inner[0]
    arguments = definition.args
    every = [*arguments.posonlyargs, *arguments.args]
    if every and every[0].arg in ("self", "cls"):
        (arguments.posonlyargs or arguments.args).pop(0)
    returns = f" -> {ast.unparse(definition.returns)}" if definition.returns else ""
    line = f"{name}({ast.unparse(arguments)}){returns}"
    if len(line) > 76:  # an argument a line; commas inside brackets belong to shapes
        depth, lines, start = 0, [], 0
        text = ast.unparse(arguments)
        for i, letter in enumerate(text):
            depth += (letter in "[(") - (letter in "])")
            if letter == "," and not depth:
                lines.append(text[start : i + 1].strip())
                start = i + 1
        lines.append(text[start:].strip() + ",")
        inner = "".join(f"    {one}\n" for one in lines)
        line = f"{name}(\n{inner}){returns}"
    return f"```python\n{line}\n```"


def _prose(docstring: str) -> str:
    """A docstring as Markdown: its sections as lists."""
    blocks = []
    for block in docstring.split("\n\n"):
        title, *lines = block.splitlines()
        if not re.fullmatch(r"(Args|Attributes|Returns|Raises):", title):
            blocks.append(block)
            continue
        entries: list[str] = []
        for line in lines:
            deeper = line.startswith("        ")
            if deeper or title == "Returns:":
                entries[-1:] = [" ".join([*entries[-1:], line.strip()])]
            else:
                entries.append(re.sub(r"^([\w, *]+):", r"`\1`:", line.strip()))
        blocks.append(f"**{title[:-1]}**\n\n" + "\n".join(f"- {entry}" for entry in entries))
    return "\n\n".join(blocks)


# The address is a plain string in it, for Colab is given the notebook alone.
FIRST_CELL = """\
# Where the book's library is missing, as on Colab, this fetches and installs it; elsewhere it does nothing.
import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("hsnet") is None:
    address, branch = "{address}", "{branch}"
    if not address:
        raise ModuleNotFoundError("hsnet is missing: say `make test` once, then `.venv/bin/jupyter lab book`")
    folder = address.split("/")[-1]
    !git clone --depth=1 --branch={{branch}} {{address}}
    %pip install --editable {{folder}}
    sys.path.insert(0, str(Path(folder).resolve()))  # an editable package is seen by the next kernel, not by this one"""
COLAB, BINDER = "https://colab.research.google.com", "https://mybinder.org"
BADGES = (
    f"[![Open in Colab]({COLAB}/assets/colab-badge.svg)]"
    f"({COLAB}/github/{{name}}/blob/{{branch}}/book/intro.ipynb) "
    f"[![Open on Binder]({BINDER}/badge_logo.svg)]"
    f"({BINDER}/v2/gh/{{name}}/{{branch}}?urlpath=lab/tree/book/intro.ipynb)"
)


def published(root: Path = ROOT) -> tuple[str, str]:
    """The public address and branch of the repository, from `_config.yml`; an empty address where there is none."""
    text = (root / "_config.yml").read_text()
    return tuple(re.search(rf'^  {key}: "(.*)"$', text, re.MULTILINE)[1] for key in ("url", "branch"))


def publish(address: str, branch: str, root: Path = ROOT) -> None:
    """Write the repository's address into the book's configuration, the first cell of its pages, and the README's badges.

    Args:
        address: "https://github.com/NAME/REPOSITORY"; empty takes buttons and badges away.
        branch: whose pages are opened.
        root: a checkout.

    Raises:
        ValueError: another kind of address.
    """
    address = address.removesuffix("/").removesuffix(".git")
    name = re.fullmatch(r"https://github\.com/([\w.-]+/[\w.-]+)", address)
    if address and not name:
        raise ValueError(f"{address!r} is no address for Colab: give https://github.com/NAME/REPOSITORY")
    config = root / "_config.yml"
    text = config.read_text()
    hosts = {"binderhub_url": BINDER if address else "", "colab_url": COLAB if address else ""}
    for key, value in ({"url": address, "branch": branch} | hosts).items():
        text = re.sub(rf'^  {key}: ".*"$', f'  {key}: "{value}"', text, flags=re.MULTILINE)
    config.write_text(text)

    source = FIRST_CELL.format(address=address, branch=branch).splitlines(keepends=True)
    first = {"cell_type": "code", "execution_count": None, "id": "0", "metadata": {"tags": ["remove-cell"]}}
    for page in sorted((root / "book").glob("*.ipynb")):
        notebook = json.loads(page.read_text())
        cells = notebook["cells"]
        if "remove-cell" in cells[0]["metadata"].get("tags", []):
            del cells[0]
        cells.insert(0, {**first, "outputs": [], "source": source})
        for i, cell in enumerate(cells):
            cell["id"] = str(i)  # as nbstripout numbers them
        page.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")

    readme = root / "README.md"
    title, *lines = readme.read_text().splitlines(keepends=True)
    if lines[1].startswith("[![Open in Colab]"):
        del lines[:2]
    badges = ["\n", BADGES.format(name=name[1], branch=branch) + "\n"] if name else []
    readme.write_text("".join([title, *badges, *lines]))


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        prog="python -m hsnet.book", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    address, branch = published()
    parser.add_argument("--address", default=address, help=f"of the repository; '' for none (default: {address!r})")
    parser.add_argument("--branch", default=branch, help=f"whose pages are opened (default: {branch!r})")
    arguments = parser.parse_args()
    publish(arguments.address, arguments.branch)
    print(f"written for {arguments.address or 'no address'}; `make book` builds the pages")


if __name__ == "__main__":
    run_program(main)
