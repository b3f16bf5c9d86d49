"""The built book in a real browser: run by `make pages`, which says where the pages are."""

import os
import re
from pathlib import Path

import pytest
from helpers import BOOK, PAGES, QUESTIONS, VIEWS, require_pages

require_pages()

NAMES = sorted(p.relative_to(PAGES).as_posix() for p in Path(PAGES, "book").glob("*.html"))
assert "book/intro.html" in NAMES


# Formulas, code and what cells print, with the solutions open, that have to be scrolled sideways.
CUT = """() => {
    document.querySelectorAll(".toggle-hidden").forEach(e => e.classList.remove("toggle-hidden"));
    document.querySelectorAll("details").forEach(e => e.open = true);
    return [...document.querySelectorAll("mjx-container[display=true], article pre")]
        .filter(e => e.clientWidth && e.scrollWidth > e.clientWidth + 1)
        .map(e => (e.closest("[id]").id + ": " + e.textContent).slice(0, 120));
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", NAMES)
def test_page(visit, name, view, scheme):
    page = visit(name, view, scheme)
    assert page.locator("article h1").count() == 1
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    # Nothing makes the page wider than the screen.
    assert page.evaluate("document.documentElement.scrollWidth") <= VIEWS[view][0] + 1
    without = "[...document.images].filter(i => !i.alt || i.alt.includes('/')).map(i => i.src.slice(0, 90))"
    missing = page.evaluate(without)
    assert not missing, f"pictures without a text: {missing}"
    formulas = page.locator(".math").count()
    assert formulas == 0 or page.locator("mjx-container svg").count() > 0, "formulas are not drawn"
    if folder := os.environ.get("HSNET_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{Path(name).stem}-{view}-{scheme}.png", full_page=True)
    if view == "desk":
        cut = page.evaluate(CUT)
        assert not cut, "wider than the page:\n" + "\n".join(cut)


@pytest.mark.parametrize("name", NAMES)
def test_sliders_move_by_keyboard(visit, name):
    page = visit(name)
    for box in page.locator(".hsnet-slider").all():
        handle = box.locator("input")
        shown = box.locator(".hsnet-frame:not([hidden])")
        before, words = shown.get_attribute("aria-label"), box.locator("output").inner_text()
        handle.focus()
        page.keyboard.press("ArrowRight")
        assert shown.count() == 1
        assert shown.get_attribute("aria-label") != before
        assert box.locator("output").inner_text() != words
        assert handle.get_attribute("aria-valuetext") == box.locator("output").inner_text()
        assert shown.get_attribute("aria-label").endswith(handle.get_attribute("aria-valuetext"))
        page.keyboard.press("End")
        assert handle.input_value() == handle.get_attribute("max")
        page.keyboard.press("Home")
        assert shown.get_attribute("aria-label") == before


@pytest.mark.parametrize("words", QUESTIONS)
def test_a_question_is_found_by_the_search(visit, words):
    page = visit(f"search.html?q={words.replace(' ', '+')}")
    found = page.locator("#search-results li a")
    found.nth(2).wait_for()
    first = [found.nth(i).get_attribute("href") for i in range(3)]
    # The answer, or a page that it links to.
    answers = (BOOK / "questions.md").read_text().split("\n## ")[1:]
    [answer] = [text for text in answers if words.lower() in text.lower()]
    right = {"questions", *re.findall(r"\{doc\}`(\w+)`", answer)}
    assert right & {Path(address.partition("#")[0]).stem for address in first}, first
