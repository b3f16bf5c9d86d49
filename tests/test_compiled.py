"""`--compile`: one graph without a break, and the same numbers. In programs of their own: these tests check shapes, which breaks graphs."""

import json
import shutil
import subprocess
import sys

import pytest

from hsnet import HSNet
from hsnet.config import Config
from hsnet.fast.compiling import compile_network

# Prints how much a compiled network's gradients and mask differ; `fullgraph` makes every break an error.
NETWORK = """
plain = HSNet("efficientnet_lite0", pretrained=False, levels=1)
compiled = copy.deepcopy(plain)
compile_network(compiled, backend="aot_eager")  # all but the generated code, which takes minutes
query, support = torch.randn(2, 2, 3, 64, 64)
mask = disc(64).expand(2, 64, 64)
compare(plain, compiled, query, support, mask)
predictions = [model.predict(query, support[:, None], mask[:, None]) for model in (plain, compiled)]
print((predictions[0] != predictions[1]).float().mean().item())
"""
BLOCK = """
plain = MixingBlock(convolutions=1).double()
compiled = copy.deepcopy(plain)
compiled.compile(fullgraph=True, dynamic=False)
compare(plain, compiled, torch.randn(1, 128, 4, 4, 2, 2).double(), torch.randn(1, 128, 2, 2, 2, 2).double())
"""
PROGRAM = """
import copy, torch
from hsnet import HSNet
from hsnet.fast.compiling import compile_network
from hsnet.model import MixingBlock
from hsnet.speed.measure import disc

def compare(plain, compiled, *inputs):
    found = []
    for model in (plain, compiled):
        model(*inputs).square().mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]))
    print(((found[1] - found[0]).norm() / found[0].norm()).item())

torch.manual_seed(0)
"""


def differences(program):
    done = subprocess.run([sys.executable, "-c", PROGRAM + program], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    return [json.loads(line) for line in lines if line[0].isdigit()], "compiling …" in lines


def test_training_and_prediction_are_one_graph_each():
    (gradients, masks), said = differences(NETWORK)
    assert gradients < 1e-4
    assert masks < 0.001
    assert said  # that one has to wait


@pytest.mark.skipif(not shutil.which("g++"), reason="no g++ here, which PyTorch's compiler needs on a processor")
def test_the_compiler_computes_the_same(tmp_path, monkeypatch):
    """A mixing block, for all of the network would take minutes: resizing, convolutions, normalisation."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    (gradients,), _ = differences(BLOCK)
    assert gradients < 1e-9


def test_what_the_compiler_gets_wrong_is_refused():
    with pytest.raises(ValueError, match="fewer than 3 convolutions cannot be compiled"):
        compile_network(HSNet("efficientnet_lite0", pretrained=False, convolutions=2))


def test_nothing_is_compiled_unless_asked_for():
    assert not Config().compile
