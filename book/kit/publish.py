"""Makes the pages open on Colab and Binder: writes the repository's address where it is needed."""

import argparse
import json
import re
from pathlib import Path

from hsnet.config import run_program
from hsnet.paths import ROOT

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
    # An editable package is seen by the next kernel, not by this one; the pages' own helpers lie beside them.
    sys.path[:0] = [str(Path(folder).resolve()), str(Path(folder, "book").resolve())]"""
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
    parser = argparse.ArgumentParser("python book/kit/publish.py", description=__doc__)
    address, branch = published()
    parser.add_argument("--address", default=address, help=f"of the repository; '' for none (default: {address!r})")
    parser.add_argument("--branch", default=branch, help=f"whose pages are opened (default: {branch!r})")
    arguments = parser.parse_args()
    publish(arguments.address, arguments.branch)
    print(f"written for {arguments.address or 'no address'}; `make book` builds the pages")


if __name__ == "__main__":
    run_program(main)
