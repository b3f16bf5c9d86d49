"""`--compile`: one graph without a break, and the same numbers. In programs of their own: these tests check shapes, which breaks graphs."""

import shutil

import pytest
from helpers import python

from hsnet import HSNet
from hsnet.fast.compiling import compile_network

# Prints how much a compiled network's gradients and masks differ; `fullgraph` makes every break an error. The generated code
# takes a minute a level: of the mixing block, the second one, only the graph is made.
PROGRAM = """
import copy, sys, torch
from hsnet import HSNet
from hsnet.fast.compiling import compile_network
from hsnet.speed.measure import disc

query, support, mask = *torch.randn(2, 2, 3, 64, 64), disc(64).expand(2, 64, 64)
for levels, backend in ((1, sys.argv[1]), (2, "aot_eager")):
    torch.manual_seed(0)
    plain = HSNet("efficientnet_lite0", pretrained=False, levels=levels)
    compiled = copy.deepcopy(plain)
    compile_network(compiled, backend=backend)
    found = []
    for model in (plain, compiled):
        model(query, support, mask).square().mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    print(((found[1] - found[0]).norm() / found[0].norm()).item())
    predictions = [model.predict(query, support[:, None], mask[:, None]) for model in (plain, compiled)]
    print((predictions[0] != predictions[1]).float().mean().item())
"""


def test_training_and_prediction_are_one_graph_each(tmp_path, monkeypatch):
    """The backbone, the learned part and its gradients as generated code; where no C++ compiler is, as graphs alone."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    done = python("-c", PROGRAM, "inductor" if shutil.which("g++") else "aot_eager", timeout=900)
    lines = done.stdout.splitlines()
    gradients, masks, *of_two_levels = (float(line) for line in lines if line[0].isdigit())
    assert max(gradients, of_two_levels[0]) < 1e-4
    assert max(masks, of_two_levels[1]) < 0.001
    assert lines[0].startswith("compiling")  # that one has to wait
    assert any(line.startswith("compiled a part in") for line in lines)


def test_what_the_compiler_gets_wrong_is_refused():
    with pytest.raises(ValueError, match="fewer than 3 convolutions cannot be compiled"):
        compile_network(HSNet("efficientnet_lite0", pretrained=False, convolutions=2))
