"""The page that runs the network in a real browser, and the brush of a notebook: run by `make pages`, as test_pages.py."""

import base64
import io
import json
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from helpers import PAGES, require_pages
from kit.brush import Brush
from PIL import Image

from hsnet import HSNet, Segmenter
from hsnet.paths import ROOT
from hsnet.runs import DEFAULT_RUN

require_pages()
FIRST, FURTHER = 8, 4  # seconds that an answer should take, on one thread of a machine with nothing else to do
NAME = "book/try_it.html"


@pytest.fixture(scope="module")
def episodes():
    """The built-in episodes as the page has them: pictures as arrays, the mask as booleans."""
    text = Path(PAGES, "try", "episodes.js").read_text()
    found = json.loads(text.removeprefix("globalThis.hsnetEpisodes=").rstrip(";\n"))["episodes"]
    for episode in found:
        for what in ("support", "mask", "query"):
            episode[what] = np.asarray(Image.open(io.BytesIO(base64.b64decode(episode[what].split(",")[1]))))
        episode["mask"] = episode["mask"] > 127
    return found


def run(page):
    """Press the button; what was found, and the painted masks, as booleans, and the seconds."""
    page.evaluate("globalThis.hsnetTry = undefined")
    page.locator("[data-part=run]").click()
    page.wait_for_function(
        "globalThis.hsnetTry || document.querySelector('[data-part=status]').textContent.includes('not work')",
        timeout=120_000,
    )
    assert "not work" not in page.locator("[data-part=status]").inner_text()
    found = page.evaluate("globalThis.hsnetTry")
    side = round(len(found["masks"][0]) ** 0.5)
    probability, masks = (np.array(found[n]).reshape(-1, side, side) for n in ("probability", "masks"))
    threshold = page.evaluate("globalThis.hsnetEpisodes.thresholds")[len(masks) > 1]
    return probability[0] > threshold, masks > 0, found["seconds"]


def iou(a, b):
    return (a & b).sum() / max((a | b).sum(), 1)


def warn_if_slow(seconds, limit):
    """In the summary of the tests, not as a failure: the time is the machine's as much as the page's."""
    if seconds["answer"] > limit:
        warnings.warn(f"an answer on the page took more than {limit} s: {seconds}", stacklevel=2)


def python_says(support, mask, query):
    run = ROOT / "data" / "runs" / DEFAULT_RUN
    size = HSNet.from_run(run).training_size  # the page computes at this one alone
    return Segmenter(run, size=size).fit(support, mask).predict(query)


def shown(page, i):
    """Wait until a built-in episode is drawn."""
    page.wait_for_function(f"document.getElementById('hsnet-try').dataset.shown === '{i}'")


def choose(page, i):
    """Take a built-in episode with the mask that it has."""
    page.locator("[data-part=episode]").select_option(str(i))
    shown(page, i)
    page.locator("[data-part=given]").click()


def says(page, text):
    """Wait until the line below the pictures says that."""
    page.wait_for_function("t => document.querySelector('[data-part=status]').textContent.includes(t)", arg=text)


@pytest.fixture
def page(visit):
    """The page in its window, with the first episode."""
    page = visit(NAME, still=False)
    shown(page, 0)
    return page


def test_what_is_painted_is_found_as_python_finds_it(page, episodes):
    canvas = page.locator("[data-part=support]").bounding_box()
    truth = episodes[0]["mask"]
    scale = canvas["width"] / truth.shape[1]
    for y in range(4, truth.shape[0], 8):  # strokes from the object's left to its right border
        inside = np.flatnonzero(truth[y])
        if len(inside) > 8:
            for x, act in ((inside[0] + 4, page.mouse.down), (inside[-1] - 4, page.mouse.up)):
                page.mouse.move(canvas["x"] + x * scale, canvas["y"] + y * scale, steps=4)
                act()
    found, [painted], seconds = run(page)
    assert iou(painted, truth) > 0.7, "the strokes do not follow the object"
    assert iou(found, python_says(episodes[0]["support"], painted, episodes[0]["query"])) >= 0.99
    warn_if_slow(seconds, FIRST)
    # The same query asked for its other object: only the support is new.
    choose(page, 1)
    found, [painted], seconds = run(page)
    assert (painted == episodes[1]["mask"]).all()
    assert iou(found, python_says(episodes[1]["support"], painted, episodes[1]["query"])) >= 0.99
    warn_if_slow(seconds, FURTHER)


def test_from_a_folder_without_a_server(visit, episodes):
    page = visit(NAME, where=Path(PAGES).resolve().as_uri(), still=False)
    shown(page, 0)
    choose(page, 2)
    found, [painted], _ = run(page)
    assert (found == python_says(episodes[2]["support"], painted, episodes[2]["query"])).mean() >= 0.999


def test_own_pictures_keep_their_size(page, episodes, tmp_path):
    for name, what, size in (("support", "support", (300, 200)), ("query", "query", (1000, 250))):
        Image.fromarray(episodes[0][what]).resize(size).save(tmp_path / f"{name}.png")
    page.locator("[data-part=episode]").select_option("own")
    for name in ("support", "query"):
        page.locator(f"[data-part={name}-file]").set_input_files(tmp_path / f"{name}.png")
    page.wait_for_function("document.querySelector('[data-part=query]').width === 512")
    assert page.evaluate("document.querySelector('[data-part=query]').height") == 128
    # By keyboard: the brush begins in the middle.
    page.locator("[data-part=run]").click()
    assert "Paint the object" in page.locator("[data-part=status]").inner_text()
    page.locator("[data-part=support]").focus()
    for key in (" ", "ArrowRight", " ", "ArrowDown", " "):
        page.keyboard.press(key)
    _, [painted], _ = run(page)
    for places in painted.nonzero():
        assert abs(places.mean() / len(painted) - 0.5) < 0.04
    assert "query," in page.locator("[data-part=query-caption]").inner_text()
    with page.expect_download() as download:
        page.locator("[data-part=save]").click()
    saved = np.asarray(Image.open(download.value.path()).convert("L"))
    assert saved.shape == (250, 1000)  # the file's own size
    assert set(np.unique(saved)) <= {0, 255}
    (tmp_path / "text.png").write_text("no picture")
    page.locator("[data-part=query-file]").set_input_files(tmp_path / "text.png")
    says(page, "text.png is not an image")


def test_own_pictures_replace_the_episode_and_several_supports_vote(page, episodes, tmp_path):
    page.locator("[data-part=given]").click()
    page.locator("[data-part=episode]").select_option("own")
    status = page.locator("[data-part=status]")
    for name in ("support", "query"):  # nothing is left of the episode
        drawn = "c => [...c.getContext('2d').getImageData(0, 0, 99, 99).data].some(v => v)"
        assert not page.locator(f"canvas[data-part={name}]").evaluate(drawn)
    assert page.locator("[data-part=attribution]").is_hidden()
    page.locator("[data-part=run]").click()
    assert "Choose a support and a query first" in status.inner_text()
    pairs = [(episodes[i]["support"], episodes[i]["mask"]) for i in (0, 2)]
    for i, (picture, _) in enumerate(pairs):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    Image.fromarray(episodes[0]["query"]).save(tmp_path / "query.png")
    page.locator("[data-part=support-file]").set_input_files([tmp_path / f"{i}.png" for i in range(2)])
    page.wait_for_function("document.querySelectorAll('[data-part=thumbnails] button').length === 2")
    page.locator("[data-part=run]").click()
    assert "Choose a query first" in status.inner_text()
    page.locator("[data-part=query-file]").set_input_files(tmp_path / "query.png")
    says(page, "press the button")
    for i, (_, mask) in enumerate(pairs):
        page.locator("[data-part=thumbnails] button").nth(i).click()
        if i == 1:
            page.locator("[data-part=run]").click()
            assert "Paint the object in support 2 first" in status.inner_text()
        box = page.locator("canvas[data-part=support]").bounding_box()
        rows, columns = np.nonzero(mask)
        scale = box["width"] / mask.shape[1]
        page.mouse.move(box["x"] + columns.min() * scale, box["y"] + rows.mean() * scale)
        page.mouse.down()
        page.mouse.move(box["x"] + columns.max() * scale, box["y"] + rows.mean() * scale, steps=5)
        page.mouse.up()
    _, painted, _ = run(page)
    assert len(painted) == 2
    with page.expect_download() as download:
        page.locator("[data-part=save]").click()
    saved = np.asarray(Image.open(download.value.path()).convert("L")) > 0
    assert iou(saved, python_says([p for p, _ in pairs], [*painted], episodes[0]["query"])) >= 0.99
    share = round(100 * saved.mean())
    words = f"marked: {share} % of the image" if share else "query,"
    assert words in page.locator("[data-part=query-caption]").inner_text()


def test_a_browser_without_webassembly_is_told(visit):
    page = visit(NAME, before="delete globalThis.WebAssembly", still=False)
    assert "cannot run WebAssembly" in page.locator("#hsnet-try [role=alert]").inner_text()
    assert page.locator("#hsnet-try button").count() == 0


@pytest.mark.parametrize(("view", "scheme"), [("desk", "light"), ("desk", "dark"), ("phone", "light")])
def test_it_fits_the_window(visit, view, scheme):
    page = visit(NAME, view, scheme, still=False)
    shown(page, 0)
    page.locator("[data-part=given]").click()
    run(page)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "the page scrolls sideways"
    if view == "phone":  # what was scrolled to is below the header
        top = page.locator("canvas[data-part=query]").bounding_box()["y"]
        header = page.locator(".bd-header-article").bounding_box()
        assert top >= header["y"] + header["height"]
    if folder := os.environ.get("HSNET_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"try_it-answer-{view}-{scheme}.png", full_page=True)


# What Jupyter gives a widget: its state, and an element to draw in.
NOTEBOOK = """async ([code, picture]) => {
  const state = (globalThis.state = { picture });
  const model = { get: (name) => state[name], set: (name, value) => (state[name] = value), save_changes() {} };
  const widget = await import(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
  widget.default.render({ model, el: document.body });
}"""


def test_the_brush_of_a_notebook_paints_erases_and_clears(browser):
    brush = Brush(np.full((300, 600, 3), 200, np.uint8))  # shown at 400 × 200
    page = browser.new_page(viewport={"width": 800, "height": 600})
    page.evaluate(NOTEBOOK, [Brush._esm, brush.picture])
    page.wait_for_function("document.querySelector('canvas').width === 400")
    canvas = page.locator("canvas").bounding_box()

    def drag(*points):
        page.mouse.move(canvas["x"] + points[0][0], canvas["y"] + points[0][1])
        page.mouse.down()
        for x, y in points[1:]:
            page.mouse.move(canvas["x"] + x, canvas["y"] + y, steps=5)
        page.mouse.up()

    def bounds():
        brush.painted = page.evaluate("state.painted")
        assert brush.mask.shape == (300, 600)
        rows, columns = brush.mask.nonzero()
        return [rows.min(), rows.max(), columns.min(), columns.max()]

    drag((50, 100), (350, 100))  # 16 pixels wide, so 24 in the picture
    assert np.abs(np.array(bounds()) - [138, 162, 63, 537]).max() <= 3
    page.locator("input[type=checkbox]").check()
    drag((200, 100), (390, 100))
    assert np.abs(np.array(bounds()) - [138, 162, 63, 294]).max() <= 7  # round on the inside: 288 to 300
    page.locator("button").click()
    brush.painted = page.evaluate("state.painted")
    assert not brush.mask.any()
    # By keyboard: the brush begins where the mouse left it, or in the middle.
    page.locator("input[type=checkbox]").uncheck()
    page.mouse.move(canvas["x"] + 10, canvas["y"] + canvas["height"] + 100)
    page.locator("canvas").focus()
    for key in [" ", *["ArrowRight"] * 5, " ", *["ArrowDown"] * 5, " "]:
        page.keyboard.press(key)
    assert np.abs(np.array(bounds()) - [138, 192, 288, 342]).max() <= 3
    page.close()
