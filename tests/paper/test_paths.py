"""One network, several ways to compute it: the figure, a GPU's operations, the fast wing, the obvious way; with gradients and without."""

from contextlib import nullcontext

import pytest
import torch

from hsnet import HSNet, fast, naive
from hsnet.conv4d import KERNELS
from hsnet.fast.machine import few_operations

OPTIONS = [
    *({"kernel": kernel} for kernel in KERNELS),
    {"mask_support": False},
    {"layers": "deep"},
    {"layers": "shallow", "levels": 2},
    {"levels": 1},
    {"convolutions": 2},
    {"convolutions": 1},
    {"train_backbone": True},
]


@pytest.fixture(params=["figure", "few operations", "fast"])
def path(request, monkeypatch):
    """Makes every network take one of the paths, where all are right."""
    if request.param == "figure":
        monkeypatch.setattr(fast, "applies", lambda *_, **__: False)
    with few_operations() if request.param == "few operations" else nullcontext():
        yield request.param


def example(query=(64, 96), support=(96, 64), **settings):
    """A network in float64 with two queries, and two supports of another size for each."""
    torch.manual_seed(0)
    model = HSNet("efficientnet_lite0", pretrained=False, **settings).double()
    for module in model.modules():  # or the ReLU after each would cut off half of what is compared
        if isinstance(module, torch.nn.GroupNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias)
    pictures = torch.randn(2, 3, *query).double(), torch.randn(2, 2, 3, *support).double()
    return model, *pictures, torch.rand(2, 2, *support) > 0.5


@pytest.mark.parametrize("settings", OPTIONS, ids=str)
def test_gradients_on_equal_gradients_off(settings, path):
    model, query, support, mask = example(**settings)
    with torch.enable_grad():
        learned = model(query, support[:, 0], mask[:, 0])
    assert learned.requires_grad
    with torch.no_grad():
        predicted = model(query, support[:, 0], mask[:, 0])
    torch.testing.assert_close(predicted, learned.detach())


SQUEEZED = {"query": (40, 64), "support": (264, 40)}  # to 2 × 1, the others' supports to 1 × 1


@pytest.mark.parametrize("settings", [SQUEEZED, {"mask_support": False}, {"layers": "deep", "levels": 2}], ids=str)
def test_fast_equals_figure_equals_naive(settings, monkeypatch):
    """In float64: in float32 rounding may put a unit on the other side of a ReLU, which shows in all gradients before it."""
    model, query, support, mask = example(**settings)

    def run():
        model.zero_grad()
        logits = model(query, support[:, 0], mask[:, 0])
        logits.square().sum().backward()
        gradients = torch.cat([p.grad.flatten() for p in model.learned_parameters().values()])
        return logits.detach(), model.predict(query, support, mask), gradients

    asked, rule = [], fast.applies
    monkeypatch.setattr(fast, "applies", lambda *a, **k: asked.append(rule(*a, **k)) or asked[-1])
    fused = run()
    assert asked == [True, True]  # of forward and of predict
    monkeypatch.setattr(fast, "applies", lambda *_, **__: False)
    figure = run()
    with few_operations():
        few = run()
    for found in (few, fused):
        torch.testing.assert_close(found, figure)
        assert torch.equal(found[1], figure[1])
    with torch.no_grad():
        obvious = naive.forward(model, query, support[:, 0], mask[:, 0])
    torch.testing.assert_close(obvious, figure[0])
    assert torch.equal(naive.predict(model, query, support, mask), figure[1])


@pytest.mark.parametrize("settings", [*OPTIONS[1 : len(KERNELS)], {"train_backbone": True}], ids=str)
def test_the_fast_path_is_for_frozen_features_and_center_pivot_kernels(settings):
    model, query, support, _ = example(**settings)
    assert not fast.applies(model, query.shape, support[:, 0].shape)


def test_a_network_of_equal_layers_is_correlated_at_once():
    """ResNet's layers of a level have one shape, so that a GPU normalises and multiplies them all at once."""
    torch.manual_seed(0)
    model = HSNet("resnet50", pretrained=False).double()
    query, support = torch.randn(2, 2, 3, 64, 64, dtype=torch.float64)
    mask = torch.rand(2, 64, 64) < 0.5
    with torch.no_grad():
        expected = model(query, support, mask)
        with few_operations():
            torch.testing.assert_close(model(query, support, mask), expected)
