"""What is drawn: frames that a slider chooses, the lit diagram, heat maps."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from kit.figures import BOXES, STATIC, FrameSlider, NetworkDiagram, differences, grid, heat, ladder, panels, two_planes
from kit.pages import SIZE

from hsnet import HSNet, hypercorrelation_pyramid


def frames(count):
    return [plt.figure(figsize=(1, 1)) for _ in range(count)]


def test_a_slider_holds_its_frames():
    html = FrameSlider(frames(3), ["a", 'b "quoted" <', "c"], "which", "A letter")._repr_html_()
    assert html.count("data:image/png;base64,") == 3
    assert html.count(" hidden>") == 2  # the first shows
    assert 'max="2"' in html
    assert 'aria-label="A letter: b &quot;quoted&quot; &lt;"' in html
    assert "http" not in html
    assert not plt.get_fignums()  # closed: the page does not show them again


def test_a_slider_holds_panels():
    image = np.zeros((4, 4, 3), np.uint8)
    html = FrameSlider([panels([("one", image), ("two", image)])], ["a"], "which", "A letter")._repr_html_()
    assert html.count("data:image/webp;base64,") == 2
    assert not plt.get_fignums()


@pytest.mark.parametrize(("figures", "labels"), [(0, 0), (13, 13), (2, 3)])
def test_a_slider_of_wrong_length(figures, labels):
    with pytest.raises(ValueError, match=f"{figures} figures and {labels} labels"):
        FrameSlider(frames(figures), ["x"] * labels, "which", "A letter")
    plt.close("all")


@pytest.mark.parametrize("box", BOXES)
def test_the_current_box_is_lit(box):
    html = NetworkDiagram(box)._repr_html_()
    lit = re.findall(r'class="box (\w+) lit"', html)
    assert set(lit) == {box}
    assert len(lit) == 2 * {"squeezing": 3, "mixing": 2}.get(box, 1)  # in the wide and in the tall drawing
    assert f"this chapter: {box}" in html


@pytest.mark.parametrize("form", ["wide", "tall"])
def test_the_shapes_in_the_diagram_are_those_of_the_network(form):
    drawn = re.sub(r"</text>\s*<text[^>]*>(?=×)", " ", (STATIC / f"network-{form}.svg").read_text())
    model, shapes = HSNet("efficientnet_lite0", pretrained=False).eval(), []
    image = torch.zeros(1, 3, SIZE, SIZE)
    with torch.no_grad():
        levels = model.backbone(image)
        for block, stack in zip(model.encoder.squeezing, hypercorrelation_pyramid(levels, levels), strict=True):
            shapes += [stack.shape, block(stack).shape]
        model.decoder.register_forward_hook(lambda decoder, inputs, output: shapes.append(inputs[0].shape))
        shapes += [image.shape, model(image, image, torch.ones(1, SIZE, SIZE)).shape]
    assert len(shapes) == 9
    for shape in shapes:
        assert " × ".join(map(str, shape[1:])) in drawn


def test_an_unknown_box():
    assert 'lit"' not in NetworkDiagram()._repr_html_()
    with pytest.raises(ValueError, match="no box 'head': choose one of backbone"):
        NetworkDiagram("head")


def test_heat_is_where_the_values_are():
    image = np.full((8, 8, 3), 100, np.uint8)
    values = np.array([[0, 0], [0, 1.0]])
    red_over_blue = np.diff(heat(image, values)[..., [2, 0]].astype(int), axis=-1)[..., 0]
    assert (red_over_blue[4:, 4:] > 100).all()
    assert (red_over_blue[:4] == 0).all()
    assert (heat(image, values * 0) == heat(image, values * 0, largest=1.0)).all()


def test_panels_are_pictures_with_their_titles():
    image = np.zeros((4, 4, 3))
    figure = panels([("a", image), ("b < c", image)], marks={1: (2, 2)})
    html = figure._repr_html_()
    assert re.findall("<figcaption>(.*?)</figcaption>", html) == ["a", "b &lt; c"]
    first, second = re.findall(r'src="([^"]*)"', html)
    assert first != second  # the cross
    assert figure.number in plt.get_fignums()  # a notebook shows it when the cell ends
    plt.close("all")


def test_a_ladder_is_as_long_as_the_scores():
    html = ladder({"one": (10.0, (8.0, 12.0)), "two": (30.0, (20.0, 40.0))}, now="two").content
    one, two = re.findall(r'<i style="width:([\d.]+)%"( class=now)?>', html)
    assert float(two[0]) == pytest.approx(3 * float(one[0]), abs=0.2)
    assert (one[1], two[1]) == ("", " class=now")
    assert re.findall(r"<b [^>]*>([\d.]+)</b>", html) == ["10.0", "30.0"]
    plt.close("all")


def test_a_grid_names_its_rows_and_columns():
    image = np.zeros((4, 4, 3), np.uint8)
    html = grid([[image, image, None], [image, None, image]], ["up", "down"], ["a", "b", "c"]).content
    assert re.findall("<figcaption>(.*?)</figcaption>", html) == ["a", "b", "a", "c"]
    assert re.findall("<b>(.*?)</b>", html) == ["up", "down"]
    assert html.count("<figure></figure>") == 2
    plt.close("all")


def test_two_planes_draw_a_line_for_each_pair():
    image = np.zeros((8, 8, 3), np.uint8)
    pairs = np.zeros((9, 9))
    pairs[4], pairs[0, 4], pairs[8, 4] = 1, 0.5, -0.5
    figure = two_planes(image, image, 8, ((3, 3), (4, 4)), pairs)
    colours = [line.get_color() for line in figure.axes[0].lines]
    assert colours.count("#d9480f") == 10
    assert colours.count("#1c7ed6") == 1
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
