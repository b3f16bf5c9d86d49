"""Muon: what it makes of a gradient, and that it learns."""

import pytest
import torch

from hsnet.optim import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (16, 16)])
def test_singular_values_become_one_and_vectors_stay(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    s[-1] = 0.05 * s[0]  # a weak direction is lifted too
    result = orthogonalise(u * s @ v)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert (u.T @ result @ v.T - torch.diag(torch.diagonal(u.T @ result @ v.T))).abs().max() < 1e-3


def test_a_stack_is_its_matrices():
    matrices = torch.randn(3, 12, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonalise(matrices), torch.stack([orthogonalise(m) for m in matrices]))


def test_a_step_has_the_size_of_the_learning_rate_whatever_the_gradient():
    for scale in (1e-3, 1e3):
        weight = torch.nn.Parameter(torch.zeros(6, 4, 3, 3))
        weight.grad = scale * torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
        Muon([weight], lr=0.1).step()
        largest = torch.linalg.matrix_norm(weight.detach().flatten(1), 2)
        assert 0.06 < largest < 0.13


def test_it_solves_a_least_squares_problem():
    torch.manual_seed(0)
    inputs, target = torch.randn(64, 8), torch.randn(4, 8)
    weight = torch.nn.Parameter(torch.zeros(4, 8))
    optimizer = Muon([weight], lr=0.05)
    for step in range(200):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / 200)
        optimizer.zero_grad()
        loss = (inputs @ weight.T - inputs @ target.T).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 1e-2
