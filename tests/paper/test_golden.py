"""Our numbers are the authors' numbers: every file of tests/golden, at the tolerance its README gives.

`pytest tests/paper/test_golden.py -rP` prints the error of each.
"""

import numpy as np
import pytest
import torch
from helpers import assert_close
from kit.golden import (
    golden,
    golden_convolutions,
    golden_features,
    golden_input,
    golden_pyramid,
    reference_model,
    reference_state_dict,
)
from torch.nn import functional as F

from hsnet import CenterPivotConv4d, HSNet, SegmentationScore, hypercorrelation_pyramid, mask_features, vote


def test_center_pivot_kernel():
    for arguments, state, x, output in golden_convolutions():
        conv = CenterPivotConv4d(*arguments)
        conv.load_state_dict(state)
        assert_close(conv(x), output)


def test_masking_and_correlation():
    file = golden("correlation.npz")
    masked = mask_features(golden_features("support"), golden_input("mask", (2, 50, 50)) > 0)
    for i, feature in enumerate(f for level in masked for f in level):
        assert_close(feature, file[f"masked{i}"])
    pyramid = hypercorrelation_pyramid(golden_features("query"), masked)
    for name, ours in zip(("shallow", "middle", "deep"), pyramid, strict=True):
        assert_close(ours, file[name])


@pytest.mark.parametrize("backbone", ["vgg16", "resnet50", "resnet101"])
def test_learned_part(backbone):
    pyramid, logits = golden_pyramid(backbone)
    model = reference_model(backbone)
    with torch.no_grad():
        assert_close(model.decoder(model.encoder(pyramid)), logits)


@pytest.mark.parametrize("backbone", ["vgg16", "resnet50", "resnet101"])
def test_whole_network(backbone):
    file = golden(f"network_{backbone}.npz")
    size = int(file["size"])
    model = reference_model(backbone)
    query, support = (golden_input(name, (1, 3, size, size)) for name in ("query_img", "support_img"))
    mask = golden_input("support_mask", (1, size, size)) > 0
    with torch.no_grad():
        features = [f for level in model.backbone(query) for f in level]
        assert [list(f.shape[1:]) for f in features] == file["feature_shapes"].tolist()
        for f, mean, std in zip(features, file["feature_means"], file["feature_stds"], strict=True):
            assert abs(f.mean() - mean) < 1e-4 * std
            assert abs(f.std() - std) < 1e-4 * std
        pyramid = hypercorrelation_pyramid(model.backbone(query), mask_features(model.backbone(support), mask))
        assert_close(model.decoder(model.encoder(pyramid)), file["logits"])
        resized = F.interpolate(torch.from_numpy(file["logits"]), (size, size), mode="bilinear", align_corners=True)
        assert_close(model(query, support, mask), resized)


@pytest.mark.parametrize("name", ["train_step_resnet50.json", "train_step_resnet50_264.json"])
def test_adam_steps(name):
    file = golden(name)
    size, b = file["size"], file["batch"]
    # In float64: in float32 one unit on the other side of a ReLU moves a gradient's norm by up to 4e-4.
    model = reference_model("resnet50").train().double()
    learned = model.learned_parameters()
    optimizer = torch.optim.Adam(learned.values(), lr=file["lr"])
    query, support = (golden_input(n, (b, 3, size, size)).double() for n in ("query_img", "support_img"))
    support_mask, query_mask = (golden_input(n, (b, size, size)) > 0 for n in ("support_mask", "query_mask"))
    losses = []
    for step in range(len(file["losses"])):
        loss = F.cross_entropy(model(query, support, support_mask), query_mask.long())
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            norms = {n: p.grad.norm().item() for n, p in learned.items()}
        optimizer.step()
        losses.append(loss.item())
    print("losses", losses, "golden", file["losses"])
    np.testing.assert_allclose(losses, file["losses"], rtol=1e-4)
    # Where each of their tensors ends up in our model: load a checkpoint whose tensors are numbered.
    shapes = golden("state_dict_resnet50.json")
    theirs = {n: torch.full(tuple(shape), float(i)) for i, (n, shape) in enumerate(shapes.items())}
    names = [n.removeprefix("hpn_learner.") for n in theirs]
    numbered = HSNet("resnet50", pretrained=False)
    numbered.load_reference_state_dict(theirs)
    numbered = numbered.state_dict()
    ours = {names[int(numbered[n].flatten()[0])]: norm for n, norm in norms.items()}
    assert ours.keys() == file["grad_norms"].keys()
    for name, norm in file["grad_norms"].items():
        np.testing.assert_allclose(ours[name], norm, rtol=1e-4, err_msg=name)


def test_votes():
    file = golden("votes.npz")
    cases = [(f"votes.{k}", k, f"mask{k}", 0.0) for k in (1, 2, 3, 5, 10)] + [("votes.sparse", 5, "mask_sparse", 1.5)]
    for name, k, key, raised in cases:
        logits = golden_input(name, (3, k, 2, 40, 40))
        logits[:, :, 0] += raised
        np.testing.assert_array_equal(vote(logits.argmax(2) > 0).numpy(), file[key] > 0, err_msg=key)


def test_scores():
    file = golden("metrics.json")
    score = SegmentationScore(range(5, 10))
    for i, class_id in enumerate(np.random.default_rng(0).integers(5, 10, 40).tolist()):
        prediction = golden_input(f"pred.{i}", (1, 30, 30)) > 0.3
        truth = golden_input(f"gt.{i}", (1, 30, 30)) > 0.5
        ignored = (golden_input(f"ignore.{i}", (1, 30, 30)) > 1.5) & ~truth
        truth = truth & (i != 0)
        prediction = prediction & (i != 1)
        score.update(prediction, truth, [class_id], ignored)
    assert score.rows == file["rows"]
    assert score.miou() == pytest.approx(file["miou"], rel=1e-6)
    assert score.fb_iou() == pytest.approx(file["fb_iou"], rel=1e-6)


def test_refuses_wrong_reference_checkpoints():
    state = reference_state_dict("resnet50")
    with pytest.raises(ValueError, match=r"resnet101.*missing: backbone.network.layer3.6"):
        HSNet("resnet101", pretrained=False).load_reference_state_dict(state)
    state["hpn_learner.surprise"] = state.pop("hpn_learner.decoder2.2.bias")
    with pytest.raises(ValueError, match=r"1 missing: decoder.after.2.bias; 1 left over: hpn_learner.surprise"):
        HSNet("resnet50", pretrained=False).load_reference_state_dict(state)
