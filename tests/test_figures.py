"""What is drawn: frames that a slider chooses, the lit diagram, heat maps."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from kit.figures import BOXES, STATIC, FrameSlider, NetworkDiagram, heat, panels
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
    for figures, labels in ((0, 0), (13, 13), (2, 3)):
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
    assert 'lit"' not in NetworkDiagram()._repr_html_()
    two = NetworkDiagram("masking", "decoder")._repr_html_()
    assert set(re.findall(r'class="box (\w+) lit"', two)) == {"masking", "decoder"}


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
    assert FrameSlider([figure], ["a"], "which", "A letter")._repr_html_().count("data:image/webp;base64,") == 2
    assert not plt.get_fignums()
