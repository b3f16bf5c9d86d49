"""The workbench of a running notebook, without a browser: what its canvases send is set by hand."""

import base64
import datetime
import io

import numpy as np
import pytest
from helpers import encoded
from PIL import Image

pytest.importorskip("anywidget", reason="the brush needs the extra `book`")
from kit.brush import Brush, Workbench

from hsnet import Segmenter
from hsnet.paths import ROOT
from hsnet.runs import DEFAULT_RUN

RNG = np.random.default_rng(0)


def png(array):
    return encoded(Image.fromarray(array), "PNG")


def paint(brush):
    """As the canvas sends it: the size of the picture that is shown, opaque where painted."""
    shown = Image.open(io.BytesIO(base64.b64decode(brush.picture.split(",")[1])))
    painted = np.zeros((shown.height, shown.width, 4), np.uint8)
    painted[shown.height // 4 : shown.height // 2, shown.width // 4 : shown.width // 2] = (255, 64, 0, 255)
    brush.painted = "data:image/png;base64," + base64.b64encode(png(painted)).decode()


def test_a_mask_has_the_size_of_its_picture():
    brush = Brush(RNG.integers(0, 256, (600, 1000, 3), np.uint8))
    assert brush.mask.shape == (600, 1000)
    assert not brush.mask.any()
    paint(brush)
    rows, columns = brush.mask.nonzero()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (150, 299, 250, 499)


def test_the_workbench_answers_like_the_segmenter():
    run = ROOT / "data" / "runs" / DEFAULT_RUN
    support, query = (RNG.integers(0, 256, (60, 80, 3), np.uint8) for _ in range(2))
    bench = Workbench(Segmenter(run))
    bench.answer()
    assert "Upload a support" in bench._status.value
    supports, queries = bench.children[0].children
    file = {"type": "image/png", "size": 1, "last_modified": datetime.datetime(2026, 1, 1)}
    supports.value = [{"name": "a.png", "content": png(support), **file}, {"name": "b.txt", "content": b"?", **file}]
    assert "Not pictures: b.txt" in bench._status.value
    queries.value = [{"name": "q.png", "content": png(query), **file}]
    bench.answer()
    assert "paint the object" in bench._status.value
    paint(bench.brushes[0])
    bench.answer()
    expected = Segmenter(run).fit(support, bench.brushes[0].mask).predict(query)
    assert (bench.answers[0] == expected).all()
