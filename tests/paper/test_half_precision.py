"""Half precision on a CPU: what oneDNN reads or writes beyond an image must never reach a result.

The library's fault shows only where the memory beside the image holds large values, so memory is filled with them here.
"""

import json
import os
import subprocess
import sys

import pytest
import torch

from hsnet import CenterPivotConv4d, hypercorrelation_pyramid, mask_features
from hsnet.correlation import unit_vectors
from hsnet.devices import choose_precision
from hsnet.fast import correlation as fused

CPU = torch.device("cpu")

PROGRAM = """
import json, sys, torch
from hsnet import HSNet
from hsnet.conv4d import KERNELS
from hsnet.devices import computing_in
from hsnet.engine import pixel_loss

torch.manual_seed(0)
query, support = torch.randn(2, 2, 3, 64, 64)
for kernel in KERNELS:
    model = HSNet("efficientnet_lite0", pretrained=False, kernel=kernel).eval()
    for width in (12, 40):  # of an object at the left: one column of the coarsest level, or both
        mask = torch.zeros(2, 64, 64, dtype=torch.bool)
        mask[:, 8:, :width] = True
        for dtype in (torch.bfloat16, torch.float32):
            model.zero_grad()
            with computing_in(dtype, torch.device("cpu")):
                logits = model(query, support, mask)
            loss = pixel_loss(logits, mask, torch.ones(2)) / mask.numel()
            loss.backward()
            gradients = torch.cat([p.grad.flatten() for p in model.learned_parameters().values()])
            print(json.dumps([kernel, width, str(dtype), loss.item(), gradients.double().norm().item()]))
"""


def run(filling: int) -> list:
    """Losses and gradients of many small networks, whose memory is filled with such bytes whenever it is got or freed."""
    tunables = {"GLIBC_TUNABLES": f"glibc.malloc.perturb={filling}", "MALLOC_PERTURB_": str(filling)}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=os.environ | tunables)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.skipif(choose_precision("auto", CPU) != torch.bfloat16, reason="this processor has no bfloat16")
def test_nothing_depends_on_what_memory_held():
    huge, three = run(1), run(191)  # bfloat16s of -1.7e38, and of 3
    assert huge == three
    for half, whole in zip(huge[::2], huge[1::2], strict=True):
        assert half[:2] == whole[:2]
        assert half[2] != whole[2]
        assert half[3:] == pytest.approx(whole[3:], rel=0.1), half[:2]


@pytest.mark.parametrize("stride", [1, 2])
def test_the_fused_path_takes_the_precision_of_autocast(stride):
    """On a GPU the unit vectors are float32 under autocast, for a norm is taken in it: the products are not."""
    torch.manual_seed(0)
    conv = CenterPivotConv4d(2, 3, 3, stride)
    query, support = ([torch.randn(2, 4, 5, 6) for _ in range(2)] for _ in range(2))
    mask = torch.rand(2, 5, 6) < 0.5
    with torch.autocast("cpu", torch.bfloat16):
        found = fused.correlate_and_convolve(conv, [unit_vectors(f) for f in query], fused.cut(support, mask, conv))
    assert found.dtype == torch.bfloat16
    expected = conv(hypercorrelation_pyramid([query], mask_features([support], mask))[0])
    torch.testing.assert_close(found.float(), expected, rtol=0.03, atol=0.03)
    gradient = torch.randn_like(expected)
    ours = torch.autograd.grad(found, list(conv.parameters()), gradient.bfloat16())
    theirs = torch.autograd.grad(expected, list(conv.parameters()), gradient)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - other).norm() < 0.02 * other.norm()
