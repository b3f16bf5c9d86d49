"""Scores and votes by hand."""

import numpy as np
import pytest
import torch

from hsnet import SegmentationScore, vote


def row(text):
    return torch.tensor([[[c == "x" for c in text]]])


def test_by_hand():
    score = SegmentationScore([3, 4, 9])
    with pytest.raises(ValueError, match="no episode has been scored yet"):
        score.miou()
    with pytest.raises(ValueError, match=r"class \[2\] is not among the scored classes \[3, 4, 9\]"):
        score.update(row("x"), row("x"), [2])
    score.update(row("xx.."), row("x..."), [3])  # intersection 1, union 2
    score.update(row("xxx."), row("xxxx"), torch.tensor([3]))  # 3, 4: class 3 is 4 of 6
    score.update(row("...."), row("..xx"), [4], ignored=row("...x"))  # 0 of 1
    assert score.class_iou() == {3: pytest.approx(100 * 4 / 6), 4: 0.0}
    assert score.miou() == pytest.approx(100 * 4 / 6 / 2)
    assert score.absent() == [9]
    # background: 2 of 3, 0 of 1, 2 of 3; foreground 1 of 2, 3 of 4, 0 of 1
    assert score.fb_iou() == pytest.approx(100 * (4 / 7 + 4 / 7) / 2)
    assert score.summary()["absent_classes"] == [9]
    empty = SegmentationScore([0])
    empty.update(row("...."), row("...."), [0])
    assert empty.miou() == 0  # an empty union counts as one


def test_interval_covers_the_score_and_narrows():
    def score(n, **options):
        rng = np.random.default_rng(0)
        s = SegmentationScore(range(4), **options)
        for i in range(n):
            truth = torch.from_numpy(rng.random((1, 8, 8)) > 0.5)
            s.update(truth ^ torch.from_numpy(rng.random((1, 8, 8)) > 0.9 - 0.1 * (i % 4)), truth, [i % 4])
        low, high = s.interval()
        assert low < s.miou() < high
        return high - low

    assert score(400) < score(40)
    assert score(400) < score(400, resample_classes=True)  # four classes that differ are a small sample


def test_a_paired_interval_sees_what_two_intervals_do_not():
    rng = np.random.default_rng(1)
    better, worse = (SegmentationScore(range(3), resample_classes=True) for _ in range(2))
    for i in range(60):  # episodes of very different difficulty; one predictor is always a little better
        truth = torch.from_numpy(rng.random((1, 20, 20)) > 0.5)
        noise = torch.from_numpy(rng.random((1, 20, 20)))
        hard = rng.uniform(0, 0.5)
        better.update(truth ^ (noise < hard), truth, [i % 3])
        worse.update(truth ^ (noise < hard + 0.03), truth, [i % 3])
    low, high = better.interval_above(worse)
    assert 0 < low < better.miou() - worse.miou() < high
    assert better.interval()[0] < worse.interval()[1]  # alone, the intervals overlap
    assert worse.interval_above(better) == pytest.approx((-high, -low))
    assert better.interval_above(better) == (0, 0)
    other = SegmentationScore(range(3))
    other.update(row("x"), row("x"), [0])
    with pytest.raises(ValueError, match="60 and 1 episodes"):
        better.interval_above(other)


def test_vote():
    masks = torch.zeros(1, 5, 1, 4, dtype=torch.bool)
    masks[0, :2, 0, 0] = True  # two votes of five, the most anywhere
    masks[0, 0, 0, 1] = True  # one: half of the largest
    assert vote(masks).tolist() == [[[True, True, False, False]]]
    assert vote(masks, "majority").tolist() == [[[False] * 4]]
    with pytest.raises(ValueError, match="unknown vote rule 'mean': choose one of paper, majority"):
        vote(masks, "mean")
