"""The frozen backbone: one image in, features at many depths out.

HSNet never looks at pixels itself. It compares what a network trained on ImageNet makes of two images, at every depth
at which that network keeps one spatial size: edges and textures in the early layers, parts and objects in the late ones.
"""

from functools import partial

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

from .fast import extract
from .fast.folding import fold_normalisation
from .networks import Row, efficientnet_lite0, leaves, timm_facts, timm_network, torchvision_network

LAYERS = {"all": slice(None), "deep": slice(-1, None), "shallow": slice(0, 1)}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def _stages(**counts: int) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(f"{stage}.{i}" for i in range(count)) for stage, count in counts.items())


# VGG-16: conv4_1 to conv5_3 before their ReLU, and pool5. ResNet: the sum of each residual block before its ReLU, conv3_x to
# conv5_x. EfficientNet-Lite0: the linear output of each block at strides 8, 16 and 32.
VGG16 = ("features.17", "features.19", "features.21"), ("features.24", "features.26", "features.28"), ("features.30",)
RESNET50, RESNET101 = _stages(layer2=4, layer3=6, layer4=3), _stages(layer2=4, layer3=23, layer4=3)
LITE0 = (
    ("blocks.2.0", "blocks.2.1"),
    tuple(f"blocks.{stage}.{i}" for stage in (3, 4) for i in range(3)),
    (*(f"blocks.5.{i}" for i in range(4)), "blocks.6.0"),
)
BACKBONES: dict[str, Row] = {
    "vgg16": Row("VGG-16", VGG16, partial(torchvision_network, "vgg16"), **IMAGENET),
    "resnet50": Row("ResNet-50", RESNET50, partial(torchvision_network, "resnet50"), **IMAGENET, node="{}.add"),
    "resnet101": Row("ResNet-101", RESNET101, partial(torchvision_network, "resnet101"), **IMAGENET, node="{}.add"),
    "efficientnet_lite0": Row("EfficientNet-Lite0", LITE0, efficientnet_lite0, mean=(0.5,) * 3, std=(0.5,) * 3),
}


def backbone_row(name: str) -> Row:
    """The row of `BACKBONES` called `name`, or that of "timm:NAME": any network of timm with strides 8, 16 and 32.

    Raises:
        ValueError: an unknown name, or a network of timm that lacks one of these strides.
    """
    if name.startswith("timm:"):
        return Row(name, build=partial(timm_network, name), **timm_facts(name))
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}: choose one of {', '.join(BACKBONES)}, or timm:NAME")
    return BACKBONES[name]


def pyramid_layers(backbone: str | Row, layers: str = "all", levels: int = 3) -> tuple[tuple[str, ...], ...]:
    """The names of the feature layers of a network, per level, fine to coarse.

    Args:
        backbone: as in `backbone_row`, or a row.
        layers: "all"; or the one "deep" (last) or "shallow" (first) layer of each level, as in the paper's ablation.
        levels: how many levels are kept, counted from the coarsest: 3 (all), 2 or 1.

    Raises:
        ValueError: for a value outside these, naming it and the choices.
    """
    if layers not in LAYERS:
        raise ValueError(f"unknown layers {layers!r}: choose one of {', '.join(LAYERS)}")
    if levels not in (1, 2, 3):
        raise ValueError(f"levels is {levels!r}: choose 3 (the whole pyramid), 2 or 1 (the coarsest levels alone)")
    row = backbone if isinstance(backbone, Row) else backbone_row(backbone)
    return tuple(level[LAYERS[layers]] for level in row.layers[-levels:])


class Backbone(nn.Module):
    """A network trained on ImageNet that returns the features of many layers.

    Args:
        name: a key of `BACKBONES`, or "timm:NAME".
        pretrained: load the ImageNet weights. False leaves them random: for tests, or when a checkpoint follows.
        layers, levels: which features are returned, see `pyramid_layers`.
        trainable: let gradients reach the backbone (the paper's ablation). BatchNorm stays in evaluation mode even
            then: statistics over a few images are noise.

    Raises:
        ValueError: an unknown name or setting, or weights whose checksum is wrong.
        ConnectionError: weights that have to be downloaded and cannot.
    """

    def __init__(
        self, name: str, *, pretrained: bool = True, layers: str = "all", levels: int = 3, trainable: bool = False
    ):
        super().__init__()
        row = backbone_row(name)
        self.name, self.trainable = name, trainable
        self.pretrained = pretrained  # whether these are still the weights that pretrained=True loads
        self.layers = pyramid_layers(row, layers, levels)
        self._row = row
        self.network = row.build(pretrained).to(memory_format=torch.channels_last)
        if not trainable:
            fold_normalisation(self.network)
        self.network.requires_grad_(trainable)
        self.train(self.training)
        nodes = {row.node.format(layer): layer for level in self.layers for layer in level}
        options = {"leaf_modules": leaves(self.network, nodes)}
        extractor = create_feature_extractor(self.network, nodes, tracer_kwargs=options)
        self._extractor = (extractor.eval(),)  # in a tuple: its modules are the network's, and are not stored twice

    def train(self, mode: bool = True) -> "Backbone":
        """Set the training flag, but keep every BatchNorm and Dropout in evaluation mode."""
        super().train(mode)
        self.network.eval()
        return self

    def unfolded(self) -> nn.Module:
        """The same network with random weights and unfolded BatchNorm, as its library builds it."""
        return self._row.build(False)

    def load_unfolded(self, tensors: dict[str, Tensor]) -> None:
        """Load a state dict of `unfolded()`."""
        network = self.unfolded().to(next(iter(tensors.values())).dtype)
        network.load_state_dict(tensors)
        if not self.trainable:
            fold_normalisation(network)
        self.network.load_state_dict(network.state_dict())

    def normalize(self, image: UInt8[Tensor, "*batch 3 h w"]) -> Float[Tensor, "*batch 3 h w"]:
        """uint8 RGB in 0…255 to the float values of this backbone's training. No other code contains its mean and deviation."""
        row = torch.tensor([self._row.mean, self._row.std]).view(2, 3, 1, 1)
        mean, std = row.to(image.device, non_blocking=True)
        return (image.float() / 255 - mean) / std

    def forward(self, image: Float[Tensor, "b 3 h w"]) -> list[list[Float[Tensor, "b _c _h _w"]]]:
        """Features of normalised images: per level, fine to coarse, one tensor a layer, shallow to deep.

        No feature shares memory with another, and none has passed the ReLU that follows it in the network.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trainable):
            features = extract(self, self._extractor[0], image)
        if self._row.channels_last:
            features = {name: x.permute(0, 3, 1, 2) for name, x in features.items()}
        return [[features[layer] for layer in level] for level in self.layers]
