"""Muon: gradient descent with orthogonalised momentum, for trainings that have a thousand steps rather than a million."""

from collections.abc import Iterable

import torch
from torch import Tensor


class Muon(torch.optim.Optimizer):
    """For weights of two or more dims; biases and normalisations belong to Adam.

    The momentum of a weight, seen as a matrix of output channels by everything else, is replaced by the nearest matrix with
    equal singular values: every direction that the gradients agree on is followed at the same speed, where Adam follows the
    strongest ones (Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024). PyTorch's and timm's
    versions compute that in bfloat16, which many CPUs only emulate; this one computes it in the weights' own precision.

    Args:
        params: the weights.
        lr: the spectral norm of a step, for weights with at most as many rows as columns.
        momentum: share of the past gradients that is kept at each step.
    """

    def __init__(self, params: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """One step along the orthogonalised momentum (Nesterov's)."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight.grad)
                state["momentum"].mul_(group["momentum"]).add_(weight.grad)
                ahead = weight.grad + group["momentum"] * state["momentum"]
                matrix = ahead.flatten(1)
                size = group["lr"] * max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                weight.sub_(orthogonalise(matrix).view_as(weight), alpha=size)


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearly the matrix with the same singular vectors and all singular values 1 (0.7 to 1.2 after five steps).

    A Newton-Schulz iteration whose polynomial was tuned to lift small singular values fast.
    """
    x = matrix / (matrix.norm() + 1e-7)
    if matrix.shape[0] > matrix.shape[1]:
        x = x.T
    for _ in range(steps):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x
