"""Half precision on a CPU: what oneDNN reads or writes beyond an image must never reach a result.

The library's fault shows only where the memory beside the image holds large values, so memory is filled with them here.
"""

import json
import os

import pytest
import torch
from helpers import python

from hsnet.devices import choose_precision

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
    out = python("-c", PROGRAM, env=os.environ | tunables).stdout
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.skipif(choose_precision("auto", torch.device("cpu")) != torch.bfloat16, reason="no bfloat16 here")
def test_nothing_depends_on_what_memory_held():
    huge, three = run(1), run(191)  # bfloat16s of -1.7e38, and of 3
    assert huge == three
    for half, whole in zip(huge[::2], huge[1::2], strict=True):
        assert half[:2] == whole[:2]
        assert half[2] != whole[2]
        assert half[3:] == pytest.approx(whole[3:], rel=0.1), half[:2]
