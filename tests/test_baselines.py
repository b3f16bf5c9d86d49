"""The baselines on features whose answer is known."""

import pytest
import torch

from hsnet.baselines import Prototypes, all_foreground, any_object
from hsnet.benchmarks import load_benchmark
from hsnet.episodes import EpisodeDataset


def features(mask, noise):
    """Two levels: on the fine one the object's direction is its own, the coarse one is noise."""
    fine = torch.where(
        mask[:, None], torch.tensor([1.0, 0.2, 0.0]).view(1, 3, 1, 1), torch.tensor([0.1, 1.0, 0.0]).view(1, 3, 1, 1)
    )
    return [[fine + noise * torch.randn_like(fine)], [torch.randn(len(mask), 5, 2, 2)]]


@pytest.fixture
def masks():
    query, support = torch.zeros(2, 4, 16, 16, dtype=torch.bool)
    query[:, 4:10, 4:12] = True
    support[:, 8:14, 2:9] = True
    return query, support


def test_prototypes_choose_the_level_that_tells_and_find_the_object(masks):
    query, support = masks
    prototypes = Prototypes()
    with pytest.raises(ValueError, match="call observe with training episodes first"):
        prototypes.rule()
    for _ in range(3):
        prototypes.observe(features(query, 0.1), features(support, 0.1), support[:, None], query)
    assert prototypes.rule().startswith("16 × 16 level")
    found = prototypes.predict(features(query, 0.1), features(support, 0.1), support[:, None], (16, 16))
    assert (found == query).float().mean() > 0.98


def test_prototypes_average_over_the_supports(masks):
    query, support = masks
    prototypes = Prototypes()
    prototypes.observe(features(query, 0.1), features(support, 0.1), support[:, None], query)
    noisy = [[torch.cat([f, f])[[0, 4, 1, 5, 2, 6, 3, 7]] for f in level] for level in features(support, 0.1)]
    five = prototypes.predict(features(query, 0.1), noisy, support[:, None].repeat(1, 2, 1, 1), (32, 32))
    assert five.shape == (4, 32, 32)


def test_all_foreground_and_any_object():
    shapes = load_benchmark("shapes", size=64)
    batch = EpisodeDataset(shapes, 64, fold=0, count=1)[0]
    assert all_foreground(batch).all()
    objects = any_object(batch)
    assert (objects & batch.query_mask).sum() == batch.query_mask.sum()
    assert batch.query_mask.sum() < objects.sum() < objects.numel()
