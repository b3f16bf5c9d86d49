"""What is drawn: frames that a slider chooses, the lit diagram, heat maps."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from kit.figures import BOXES, FrameSlider, NetworkDiagram, differences, grid, heat, ladder, panels, two_planes


def frames(count):
    return [plt.figure(figsize=(1, 1)) for _ in range(count)]


def test_a_slider_holds_its_frames():
    html = FrameSlider(frames(3), ["a", 'b "quoted" <', "c"], "which", "A letter")._repr_html_()
    assert html.count("data:image/png;base64,") == 3
    assert html.count(" hidden>") == 2  # the first shows
    assert 'max="2"' in html
    assert 'alt="A letter: b &quot;quoted&quot; &lt;"' in html
    assert "http" not in html
    assert not plt.get_fignums()  # closed: the page does not show them again


@pytest.mark.parametrize(("figures", "labels"), [(0, 0), (13, 13), (2, 3)])
def test_a_slider_of_wrong_length(figures, labels):
    with pytest.raises(ValueError, match=f"{figures} figures and {labels} labels"):
        FrameSlider(frames(figures), ["x"] * labels, "which", "A letter")
    plt.close("all")


@pytest.mark.parametrize("box", BOXES)
def test_the_current_box_is_lit(box):
    html = NetworkDiagram(box)._repr_html_()
    assert re.findall(r"background:#d9480f.*?<b>(\w+)</b>", html) == [box]
    assert f"this chapter: {box}" in html


def test_an_unknown_box():
    assert "#d9480f" not in NetworkDiagram()._repr_html_()
    with pytest.raises(ValueError, match="no box 'head': choose one of backbone"):
        NetworkDiagram("head")


def test_heat_is_where_the_values_are():
    image = np.full((8, 8, 3), 100, np.uint8)
    values = np.array([[0, 0], [0, 1.0]])
    red_over_blue = np.diff(heat(image, values)[..., [2, 0]].astype(int), axis=-1)[..., 0]
    assert (red_over_blue[4:, 4:] > 100).all()
    assert (red_over_blue[:4] == 0).all()
    assert (heat(image, values * 0) == heat(image, values * 0, largest=1.0)).all()


def test_panels_and_ladder():
    image = np.zeros((4, 4, 3), np.uint8)
    figure = panels([("a", image), ("b", image)], marks={1: (2, 2)}, footer="who drew it " * 10)
    assert [axis.get_title() for axis in figure.axes] == ["a", "b"]
    assert [len(axis.lines) for axis in figure.axes] == [0, 2]
    assert "who drew it" in figure.texts[0].get_text()
    bars = ladder({"one": (10.0, (8.0, 12.0)), "two": (30.0, (20.0, 40.0))}, now="two")
    widths = [patch.get_width() for patch in bars.axes[0].patches]
    assert widths == [10, 30]
    plt.close("all")


def test_a_grid_names_its_rows_and_columns():
    image = np.zeros((4, 4, 3), np.uint8)
    figure = grid([[image, image, None], [image, None, image]], ["up", "down"], ["a", "b", "c"], "who drew it")
    assert [len(axis.images) for axis in figure.axes] == [1, 1, 0, 1, 0, 1]
    assert [axis.get_title() for axis in figure.axes] == ["a", "b", "c", "", "", ""]
    assert [text.get_text() for text in figure.texts] == ["up", "down", "who drew it"]
    plt.close("all")


def test_two_planes_draw_a_line_for_each_pair():
    image = np.zeros((8, 8, 3), np.uint8)
    pairs = np.zeros((9, 9))
    pairs[4], pairs[0, 4], pairs[8, 4] = 1, 0.5, -0.5
    figure = two_planes(image, image, 8, ((3, 3), (4, 4)), pairs, footer="who drew it")
    colours = [line.get_color() for line in figure.axes[0].lines]
    assert colours.count("#d9480f") == 10
    assert colours.count("#1c7ed6") == 1
    assert figure.texts[0].get_text() == "who drew it"
    plt.close("all")


def test_differences_are_drawn_for_what_was_run():
    bars = {
        "both": ([(0, 3.0, (1.0, 5.0)), (1, 2.0, (0.5, 4.0))], "holds"),
        "one": ([(1, -2.0, (-3.0, 1.0))], ""),
        "none": ([], ""),
    }
    figure = differences(bars, spread=1.5)
    assert [patch.get_width() for patch in figure.axes[0].patches] == [3.0, 3.0, 2.0, -2.0]  # the first is the band
    assert [text.get_text() for text in figure.axes[0].texts] == ["holds", "no verdict yet", "not run"]
    lines = [line.get_xdata() for line in figure.axes[0].lines if line.get_marker() == "None"]
    assert [list(line) for line in lines[1:]] == [[1.0, 5.0], [0.5, 4.0], [-3.0, 1.0]]
    assert not differences({"none": ([], "")}, spread=None).axes[0].patches
    plt.close("all")
