"""Fixtures that test modules share. `hsnet` is imported later: its shapes are checked only in what pytest imports itself."""

import functools
import http.server
import importlib
import os
import shutil
import sys
import threading
import warnings
from types import SimpleNamespace

import pytest
import torch
from drawn_datasets import DATASETS

# Two processes of pytest-xdist share two cores; the programs that tests start take as many threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


def pytest_collection_modifyitems(items):
    """The longest files first, so that none is left to one process in the end."""
    items.sort(key=lambda item: item.path.stem not in ("test_compiled", "test_end_to_end", "test_train"))


def table_rows(text):
    """The rows of a Markdown table, its heading first, as lists of texts."""
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    return [[column.strip() for column in row.strip().removeprefix("|").removesuffix("|").split("|")] for row in rows]


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    """A fresh data folder for every test: none reads or writes the checkout's runs."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv("HSNET_DATA", str(folder))
    torch.manual_seed(0)
    return folder


@pytest.fixture
def run(data):
    """The folder of a run called one: empty."""
    folder = data / "runs" / "one"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """PASCAL, COCO and FSS-1000 as small drawn data sets, and their split lists."""
    folder = tmp_path_factory.mktemp("drawn")
    for name, draw in DATASETS.items():
        draw(folder / name, folder / "splits")
    return folder


@pytest.fixture
def datasets(drawn, tmp_path, monkeypatch):
    """A copy of them that a test may change, where the benchmarks look for it."""
    shutil.copytree(drawn, tmp_path / "images")
    monkeypatch.setenv("HSNET_IMAGES", str(tmp_path / "images"))
    monkeypatch.setenv("HSNET_SPLITS", str(tmp_path / "images" / "splits"))
    return tmp_path / "images"


@pytest.fixture
def call(monkeypatch, capsys):
    """`python -m hsnet.PROGRAM OPTIONS` in this process, which has loaded everything: its `stdout` and `stderr`."""
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # programs set their own

    def run(program, *options, status=0):
        monkeypatch.setattr(sys, "argv", [program, *map(str, options)])
        capsys.readouterr()
        found = 0
        try:
            importlib.import_module("hsnet.config").run_program(importlib.import_module(f"hsnet.{program}").main)
        except SystemExit as end:
            found = end.code or 0
        out = capsys.readouterr()
        assert found == status, out.out + out.err
        return SimpleNamespace(stdout=out.out, stderr=out.err)

    return run


@pytest.fixture(scope="session")
def address():
    """The built pages of the book behind a server of this machine."""
    from helpers import PAGES

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=PAGES))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture(scope="session")
def browser():
    from helpers import BROWSER
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, address):
    """A function that opens a page; at the end, no script has failed and nothing was asked of another machine.

    `still`: nothing goes on on the page; it is waited for, and an error on the console is one.
    """
    from helpers import VIEWS

    contexts, problems = [], []

    def open_page(name, view="desk", scheme="light", where=address, before="", still=True):
        width, height = VIEWS[view]
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(f"script: {error}"))
        if still:
            page.on("console", lambda message: message.type != "error" or problems.append(f"console: {message.text}"))
        page.on(
            "request", lambda r: r.url.startswith((where, "data:", "blob:")) or problems.append(f"asked for {r.url}")
        )
        page.on("response", lambda r: r.status < 400 or problems.append(f"{r.status} {r.url}"))
        if before:
            page.add_init_script(before)
        page.goto(f"{where}/{name}", wait_until="networkidle" if still else "load")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not problems, "\n".join(problems)
