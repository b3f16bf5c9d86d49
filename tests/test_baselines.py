"""Prototypes on features whose answer is known."""

import pytest
import torch

from hsnet.baselines import Prototypes


def features(mask, noise):
    """Two levels: on the fine one the object's direction is its own, the coarse one is noise."""
    own, other = (torch.tensor(direction).view(1, 3, 1, 1) for direction in ([1.0, 0.2, 0.0], [0.1, 1.0, 0.0]))
    fine = torch.where(mask[:, None], own, other)
    return [[fine + noise * torch.randn_like(fine)], [torch.randn(len(mask), 5, 2, 2)]]


def test_prototypes_choose_the_level_that_tells_and_find_the_object():
    query, support = torch.zeros(2, 4, 16, 16, dtype=torch.bool)
    query[:, 4:10, 4:12] = True
    support[:, 8:14, 2:9] = True
    prototypes = Prototypes()
    with pytest.raises(ValueError, match="call observe with training episodes first"):
        prototypes.rule()
    for _ in range(3):
        prototypes.observe(features(query, 0.1), features(support, 0.1), support[:, None], query)
    assert prototypes.rule().startswith("16 × 16 level")
    asked, given = features(query, 0.1), features(support, 0.1)
    found = prototypes.predict(asked, given, support[:, None], (16, 16))
    assert (found == query).float().mean() > 0.98
    twice = [[f.repeat_interleave(2, 0) for f in level] for level in given]  # the mean over the supports
    assert torch.equal(prototypes.predict(asked, twice, support[:, None].repeat(1, 2, 1, 1), (16, 16)), found)
