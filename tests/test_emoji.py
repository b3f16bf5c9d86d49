"""The embedded benchmark's rules, on its real list of concepts with stand-ins for the drawings."""

import numpy as np
import pytest
from drawn_datasets import StandIns, with_stand_ins

from hsnet.benchmarks import emoji
from hsnet.benchmarks.scenes import compose
from hsnet.episodes import test_episodes


@pytest.fixture
def benchmark():
    return with_stand_ins(emoji.Emoji)


def test_the_unseen_artist_is_never_trained_on(benchmark):
    rng = np.random.default_rng(0)
    names = [name for _ in range(200) for e in [benchmark.draw(rng, 0)] for name in (e.query, *e.supports)]
    drawn_by = {artist for name in names for _, artist in benchmark.objects(name)}
    assert emoji.UNSEEN_ARTIST not in drawn_by
    assert len(drawn_by) == 6
    tested = {e.query.split(".")[3] for e in test_episodes(benchmark, fold=0, shot=1, count=300)}
    assert emoji.UNSEEN_ARTIST in tested


def test_siblings_never_stand_beside_each_other(benchmark):
    for episode in test_episodes(benchmark, fold=2, shot=1, count=100):
        objects = [c for c, _ in benchmark.objects(episode.query)]
        families = [benchmark.concepts[c].family for c in objects]
        assert len(set(families)) == len(families)


def test_scenes_have_no_halos_and_exact_masks(benchmark):
    disc = StandIns().alpha
    white = np.stack([disc] * 4, axis=-1)
    black = np.stack([0 * disc] * 3 + [disc], axis=-1)
    for sprite in (white, black):
        a, b = (compose(np.random.default_rng(5), [s], 96) for s in (sprite, black))
        outside = b.labels == 0
        np.testing.assert_array_equal(a.labels, b.labels)
        # Where nothing is drawn the background is untouched, whatever the colour of what lies on it.
        inside = ~outside
        grown = inside.copy()
        for axis in (0, 1):
            grown |= np.roll(inside, 2, axis) | np.roll(inside, -2, axis)
        np.testing.assert_array_equal(a.image[~grown], b.image[~grown])
        assert (b.image[inside].astype(int).mean() < 40).all()
