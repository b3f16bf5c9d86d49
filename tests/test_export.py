"""The exported graphs against the network: small pictures, random weights."""

import json
import sys

import numpy as np
import pytest
import torch

from hsnet import HSNet
from hsnet.baselines import Prototypes
from hsnet.config import Config
from hsnet.runs import WEIGHTS, save_model

pytest.importorskip("onnx", reason="writing ONNX needs the extra `export`")
import onnxruntime
from kit import exported

from hsnet.export import OPSET, Features, Match, make_graphs, write_graphs

SIDE = 64


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = HSNet("efficientnet_lite0").eval()
    model.training_size = SIDE
    return model


@pytest.fixture(scope="module")
def graphs(model):
    """Making them takes most of the time of these tests: once."""
    return make_graphs(model)


@pytest.fixture(scope="module")
def folder(graphs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    write_graphs(graphs, folder, "float32")
    return folder


def question(seed=1):
    generator = torch.Generator().manual_seed(seed)
    query, support = torch.randint(0, 256, (2, 3, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
    mask[10 : 30 + seed, 20:50] = True
    return query, support, mask


@torch.no_grad()
def expected(model, query, support, mask):
    normalize = model.backbone.normalize
    return model(normalize(query[None]), normalize(support[None]), mask[None]).softmax(dim=1)[0, 1]


@pytest.mark.parametrize(("side", "convolutions"), [(64, 3), (288, 3), (64, 1)])  # supports of 1 and of 2 × 2 positions
@torch.no_grad()
def test_the_plain_mathematics_equals_the_network(side, convolutions):
    torch.manual_seed(0)
    model = HSNet("efficientnet_lite0", convolutions=convolutions).eval()
    query, support = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    mask = torch.zeros(side, side, dtype=torch.bool)
    mask[side // 4 : side // 2, side // 3 :] = True
    features = Features(model)
    sizes = [tuple(level[0].shape[-2:]) for level in model.backbone(model.backbone.normalize(query[None]))]
    levels = [list(features(picture[None])) for picture in (query, support)]
    found = Match(model, side, sizes)(mask[None].float(), *levels)
    torch.testing.assert_close(found, expected(model, query, support, mask), atol=1e-5, rtol=0)


def test_the_graphs_equal_the_network(model, folder):
    run = exported.load(folder)
    for seed in (1, 2):
        asked = question(seed)
        theirs = expected(model, *asked)
        assert theirs.std() > 1e-4  # random weights say something
        assert np.abs(run(*asked) - theirs.numpy()).max() < 1e-4


@torch.no_grad()
def test_the_graph_of_the_prior_takes_any_number_of_supports(model, folder):
    run, n = onnxruntime.InferenceSession(folder / "prior.onnx", providers=["CPUExecutionProvider"]), 13
    for shot in (1, 3):
        query, *supports = (question(seed) for seed in range(1 + shot))
        mask = torch.stack([support[2] for support in supports])
        pictures = query[0][None], torch.stack([support[1] for support in supports])
        query_levels, support_levels = (model.backbone(model.backbone.normalize(x)) for x in pictures)
        inputs = {"mask": mask.float().numpy()}
        for name, level in (("query", query_levels[-1]), ("support", support_levels[-1])):
            inputs |= {f"{name}-{i}": feature.numpy() for i, feature in enumerate(level, n - len(level))}
        theirs = Prototypes.contrast(query_levels, support_levels, mask[None], (SIDE, SIDE))[0]
        assert theirs.std() > 1e-3
        assert np.abs(run.run(None, inputs)[0] - theirs.numpy()).max() < 1e-5


def test_smaller_weights_make_smaller_files_and_nearly_the_same_answer(model, graphs, folder, tmp_path):
    theirs, last = expected(model, *question()).numpy(), sum(p.stat().st_size for p in folder.glob("*.onnx"))
    for precision, largest, share in (("float16", 0.01, 0.55), ("int8", 0.1, 0.6)):
        sizes = write_graphs(graphs, tmp_path / precision, precision)
        assert sum(sizes.values()) < share * last
        assert 0 < np.abs(exported.load(tmp_path / precision)(*question()) - theirs).max() < largest
        last = sum(sizes.values())


def test_only_standard_operators_of_the_stated_opset(folder):
    import onnx

    for path in folder.glob("*.onnx"):
        graph = onnx.load(path)
        onnx.checker.check_model(graph)
        assert {(o.domain, o.version) for o in graph.opset_import if o.domain in ("", "ai.onnx")} == {("", OPSET)}
        assert {node.domain for node in graph.graph.node} <= {"", "ai.onnx"}


def test_what_cannot_be_exported_is_named(graphs, tmp_path):
    with pytest.raises(ValueError, match="unknown precision 'int4': choose one of float32, float16, int8"):
        write_graphs(graphs, tmp_path, "int4")
    assert not list(tmp_path.glob("*.onnx"))
    dense = HSNet("efficientnet_lite0", kernel="dense")
    for side, message in ((None, "training size of this model is unknown"), (SIDE, "this run has 'dense' ones")):
        dense.training_size = side
        with pytest.raises(ValueError, match=message):
            make_graphs(dense)


def test_a_run_is_checked(model, graphs, run, monkeypatch, capsys):
    save_model(run / WEIGHTS, model)
    Config(benchmark="shapes", size=SIDE, test_episodes=3).save(run / "config.json")
    monkeypatch.setattr(exported, "make_graphs", lambda _: graphs)
    monkeypatch.setattr(sys, "argv", ["exported", "one", "3"])
    exported.main()
    assert "mIoU [95 %], 3 episodes" in capsys.readouterr().out
    result = json.loads((run / "export.json").read_text())
    assert result["equal_pixels"]["float32"]["least"] > 0.99
    assert set(result["scores"]) == {"PyTorch", "float32", "float16", "int8"}
