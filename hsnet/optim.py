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
            together: dict[object, list[tuple[Tensor, Tensor]]] = {}
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight.grad)
                state["momentum"].mul_(group["momentum"]).add_(weight.grad)
                matrix = (weight.grad + group["momentum"] * state["momentum"]).flatten(1)
                # Matrices of one shape at once on a GPU, which would wait for many small products.
                key = matrix.shape if weight.is_cuda else len(together)
                together.setdefault(key, []).append((weight, matrix))
            for pairs in together.values():
                size = group["lr"] * max(1.0, pairs[0][1].shape[0] / pairs[0][1].shape[1]) ** 0.5
                matrices = pairs[0][1] if len(pairs) == 1 else torch.stack([matrix for _, matrix in pairs])
                steps = orthogonalise(matrices).view(len(pairs), *pairs[0][1].shape)
                for (weight, _), step in zip(pairs, steps, strict=True):
                    weight.sub_(step.view_as(weight), alpha=size)


def orthogonalise(matrix: Tensor, steps: int = 5) -> Tensor:
    """Nearly the matrix with the same singular vectors and all singular values 1 (0.7 to 1.2 after five steps).

    A Newton-Schulz iteration whose polynomial was tuned to lift small singular values fast.

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
