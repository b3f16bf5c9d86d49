"""The network as a whole: any sizes, its ablations, what is learned, its errors."""

import re

import jaxtyping
import pytest
import torch

from hsnet import HSNet
from hsnet.conv4d import KERNELS
from hsnet.model import PyramidEncoder


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return HSNet("efficientnet_lite0").eval()


def pictures(b, k, size=(64, 96), support=(80, 64)):
    query, supports = torch.randn(b, 3, *size), torch.randn(b, k, 3, *support)
    return query, supports, torch.rand(b, k, *support) > 0.5


@pytest.mark.parametrize(
    ("backbone", "count"),
    [("vgg16", 2_570_018), ("resnet50", 2_573_794), ("resnet101", 2_587_394), ("efficientnet_lite0", 2_572_770)],
)
def test_learned_parameters(backbone, count):
    model = HSNet(backbone, pretrained=False)
    learned = model.learned_parameters()
    assert sum(p.numel() for p in learned.values()) == count
    assert not any(name.startswith("backbone.") for name in learned)


def test_any_size_and_masks_of_either_kind(model):
    query, support, mask = pictures(2, 1)
    logits = model(query, support[:, 0], mask[:, 0])
    assert logits.shape == (2, 2, 64, 96)
    assert torch.equal(logits, model(query, support[:, 0], mask[:, 0].float()))
    assert model.predict(query, support, mask & False).shape == (2, 64, 96)


def test_fewer_convolutions_leave_the_support_as_small():
    levels = [torch.rand(1, c, 3, 3, side, side) for c, side in ((2, 37), (6, 18), (5, 9))]
    for convolutions, channels in ((3, (16, 64, 128)), (2, (16, 128)), (1, (128,))):
        encoder = PyramidEncoder((2, 6, 5), convolutions=convolutions)
        squeezed = [block(x) for block, x in zip(encoder.squeezing, levels, strict=True)]
        assert [tuple(x.shape) for x in squeezed] == [(1, 128, 3, 3, 2, 2)] * 3
        assert encoder(levels).shape == (1, 128, 3, 3)
        weights = 2 * convolutions * 2 * 3**2 * 128 * 128  # two mixing blocks, two planes a kernel
        for c, kernels in ((2, (5, 5, 3)), (6, (5, 3, 3)), (5, (3, 3, 3))):
            widths = (c, *channels)
            weights += sum(2 * k**2 * a * b for k, a, b in zip(kernels, widths, channels, strict=False))
        assert sum(p.numel() for p in encoder.parameters() if p.ndim > 1) == weights
    with pytest.raises(ValueError, match="convolutions is 4"):
        HSNet("efficientnet_lite0", pretrained=False, convolutions=4)


def test_a_batch_is_its_episodes(model):
    query, support, mask = pictures(3, 2)
    batch = model(query, support[:, 0], mask[:, 0])
    for i in range(3):
        alone = model(query[i : i + 1], support[i : i + 1, 0], mask[i : i + 1, 0])
        torch.testing.assert_close(batch[i : i + 1], alone, rtol=1e-3, atol=1e-4)
    assert torch.equal(model.predict(query, support, mask)[1:2], model.predict(query[1:2], support[1:2], mask[1:2]))


def test_the_mask_matters_only_with_mask_support(model):
    query, support, mask = pictures(1, 1)
    assert not torch.equal(model(query, support[:, 0], mask[:, 0]), model(query, support[:, 0], ~mask[:, 0]))
    blind = HSNet("efficientnet_lite0", pretrained=False, mask_support=False).eval()
    assert torch.equal(blind(query, support[:, 0], mask[:, 0]), blind(query, support[:, 0], ~mask[:, 0]))


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("layers", "levels"), [("all", 3), ("deep", 3), ("shallow", 2), ("all", 1)])
def test_ablations_learn(kernel, layers, levels):
    model = HSNet("efficientnet_lite0", pretrained=False, kernel=kernel, layers=layers, levels=levels)
    query, support, mask = pictures(1, 1, (64, 64), (64, 64))
    model(query, support[:, 0], mask[:, 0]).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.learned_parameters().values())
    counts = (2, 6, 5) if layers == "all" else (1, 1, 1)
    assert tuple(map(len, model.backbone.layers)) == counts[-levels:]


@pytest.mark.parametrize("train_backbone", [False, True])
def test_training_changes_what_is_learned_alone(train_backbone):
    model = HSNet("efficientnet_lite0", pretrained=False, train_backbone=train_backbone).train()
    assert not any(m.training for m in model.backbone.network.modules())
    query, support, mask = pictures(1, 1)
    before = {n: b.clone() for n, b in model.backbone.named_buffers()}
    model(query, support[:, 0], mask[:, 0]).square().sum().backward()
    gradients = [p.grad is not None for p in model.backbone.parameters()]
    assert any(gradients) == train_backbone
    assert all(torch.equal(b, before[n]) for n, b in model.backbone.named_buffers())


def test_warns_once_about_a_support_of_another_size(model):
    query, support, mask = pictures(1, 1, support=(288, 64))
    model.training_size = 256
    with pytest.warns(UserWarning, match="trained at 256 px") as warned:
        assert torch.equal(*(model.predict(query, support, mask) for _ in range(2)))
    assert len(warned) == 1
    model.training_size = None


def test_wrong_inputs_are_explained_where_shapes_are_not_checked(model, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as it is for users
    image, mask = torch.randn(1, 3, 32, 32), torch.ones(1, 32, 32)
    for inputs, message in (
        ((image[0], image, mask), "query has shape (3, 32, 32), expected b 3 h w: add the missing dimension with image[None]"),
        ((image.byte(), image, mask), "query is torch.uint8: pass backbone.normalize(image)"),
        ((image, image, torch.ones(1, 9, 9)), "support_mask has shape (1, 9, 9), its image (1, 3, 32, 32)"),
        ((image.repeat(2, 1, 1, 1), image, mask), "2 queries but 1 supports"),
        ((image * torch.nan, image, mask), "query holds NaN or infinity, in batch item [0]"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(message)):
            model(*inputs)
    with pytest.raises(ValueError, match="unknown kernel 'cross': choose one of center-pivot"):
        HSNet(kernel="cross")
