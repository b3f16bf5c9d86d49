"""What moves the weights: Muon, which optimizer a parameter belongs to, and the learning rate over time."""

import math
import time
from collections.abc import Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

from .config import Config

BIAS_LEARNING_RATE = 1e-3  # of Adam, for what Muon does not move
BACKBONE_LEARNING_RATE = 1e-4  # of Adam beside Muon, for a backbone that is trained too: it starts from good values


class Muon(torch.optim.Optimizer):
    """Gradient descent with orthogonalised momentum, for trainings that have a thousand steps rather than a million.

    For weights of two or more dims; biases and normalisations belong to Adam.

    The momentum of a weight, seen as a matrix of output channels by everything else, is replaced by the nearest matrix with
    equal singular values: every direction that the gradients agree on is followed at the same speed, where Adam follows the
    strongest ones (Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024). PyTorch's and timm's
    versions compute that in bfloat16, which many CPUs only emulate; this one computes it in the weights' own precision.

    An attribute `found_inf`, a tensor that is not 0, makes a step change nothing, as in PyTorch's fused optimizers: nothing
    is read back from the device for that. A `GradScaler` sets it, after `unscale_`.

    Args:
        params: the weights.
        lr: the spectral norm of a step, for weights with at most as many rows as columns.
        momentum: share of the past gradients that is kept at each step.
    """

    _step_supports_amp_scaling = True  # for `GradScaler.step`, which else would read back whether to call `step`

    def __init__(self, params: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """One step along the orthogonalised momentum (Nesterov's)."""
        skip = getattr(self, "found_inf", None)
        skip = None if skip is None else skip != 0
        for group in self.param_groups:
            stacks: dict[object, list[tuple[Tensor, Tensor]]] = {}
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight.grad)
                before = state["momentum"]
                momentum = torch.add(weight.grad, before, alpha=group["momentum"])
                matrix = torch.add(weight.grad, momentum, alpha=group["momentum"]).flatten(1)
                before.copy_(momentum if skip is None else torch.where(skip, before, momentum))
                # Matrices of one shape at once on a GPU, which would wait for many small products.
                key = matrix.shape if weight.is_cuda else len(stacks)
                stacks.setdefault(key, []).append((weight, matrix))
            for pairs in stacks.values():
                size = group["lr"] * max(1.0, pairs[0][1].shape[0] / pairs[0][1].shape[1]) ** 0.5
                matrices = pairs[0][1] if len(pairs) == 1 else torch.stack([matrix for _, matrix in pairs])
                steps = orthogonalise(matrices).view(len(pairs), *pairs[0][1].shape)
                for (weight, _), step in zip(pairs, steps, strict=True):
                    step = step if skip is None else step.masked_fill(skip, 0)
                    weight.sub_(step.view_as(weight), alpha=size)


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearly the matrix with the same singular vectors and all singular values 1.

    A tuned Newton-Schulz iteration: five steps bring singular values above 0.2 % of the matrix's norm to 0.7 to 1.2.

    Args:
        matrix: one, or a stack of them.
    """
    rows, columns = matrix.shape[-2:]
    x = matrix / (matrix.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    if rows > columns:
        x = x.mT
    for _ in range(steps):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.mT.contiguous() if rows > columns else x


def make_optimizers(config: Config, learned: dict[str, torch.nn.Parameter]) -> list[torch.optim.Optimizer]:
    """Adam for all; or Muon for the kernels and Adam for biases and normalisations, and for a backbone that is trained too."""
    # Fused, for `found_inf` (see Muon), which Apple's MPS does not obey: there a GradScaler reads it back.
    adam = partial(torch.optim.Adam, fused=next(iter(learned.values())).device.type != "mps")
    if config.optimizer == "adam":
        optimizers = [adam(learned.values(), lr=config.learning_rate)]
    else:
        groups: dict[str, list[torch.nn.Parameter]] = {"kernels": [], "biases": [], "backbone": []}
        for name, p in learned.items():
            groups["backbone" if name.startswith("backbone.") else "kernels" if p.ndim > 1 else "biases"].append(p)
        rates = {"biases": BIAS_LEARNING_RATE, "backbone": BACKBONE_LEARNING_RATE}
        optimizers = [Muon(groups["kernels"], lr=config.learning_rate)]
        optimizers += [adam(groups[name], lr=rate) for name, rate in rates.items() if groups[name]]
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["initial_lr"] = group["lr"]
    return optimizers


def scale_learning_rates(optimizers: Sequence[torch.optim.Optimizer], factor: float) -> None:
    """Set every learning rate to `factor` times its initial one."""
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["lr"] = factor * group["initial_lr"]


class Clock:
    """How far a training has come, by epochs or by minutes, whichever runs out first, and the learning rate there.

    Args:
        seconds_before: of earlier sittings.
    """

    WARM_UP = 0.05  # of the training, where the schedule is "cosine"

    def __init__(self, config: Config, seconds_before: float | int = 0.0):
        self.config = config
        self.start = time.perf_counter() - seconds_before

    def seconds(self) -> float:
        """Time since the training began, earlier sittings included. Nobody can set this clock."""
        return time.perf_counter() - self.start

    def progress(self, epochs: float | int, seconds: float | int | None = None) -> float:
        """Share of the training that is done after so many epochs and seconds (default: now): 0 to 1."""
        seconds = self.seconds() if seconds is None else seconds
        by_time = seconds / (60 * self.config.minutes) if self.config.minutes else 0.0
        return max(epochs / self.config.epochs, by_time)

    def schedule(self, progress: float | int) -> float:
        """The factor of the learning rate: the paper's constant 1, or a linear rise and then half a cosine down to zero."""
        if self.config.schedule == "constant":
            return 1.0
        rise = min(1.0, (progress + 1e-3) / self.WARM_UP)
        return rise * (1 + math.cos(math.pi * min(progress, 1))) / 2
