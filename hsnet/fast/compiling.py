"""PyTorch's compiler, which fuses the figure's operations and on a GPU records them, to start them all at once."""

import time

import torch
from torch import nn

from ..distributed import say


def compile_network(model: nn.Module, **options) -> None:
    """Compile an `HSNet` in place: `forward` as one graph, and for its other methods backbone, encoder and decoder.

    From then on it takes the figure's path whatever the memory. Each new shape of its inputs is compiled when it comes,
    which takes minutes. On a GPU the graphs are recorded (CUDA graphs): tensors that they return are good until
    `torch.compiler.cudagraph_mark_step_begin()` begins the next step.

    Args:
        options: of `torch.compile`, instead of those chosen here.

    Raises:
        ValueError: a network with fewer than three convolutions in its blocks, which averages the support.
        RuntimeError: at the first pass, where the compiler finds no C++ compiler (on a CPU) or no Triton (on a GPU).
    """
    if any(block.pool > 1 for block in model.encoder.squeezing):
        # PyTorch 2.14 compiles wrong gradients of an average whose window is larger than the image.
        raise ValueError("a network with fewer than 3 convolutions cannot be compiled: train it without --compile")
    recorded = next(model.decoder.parameters()).is_cuda
    options = {"fullgraph": True, "dynamic": False, "mode": "reduce-overhead" if recorded else None} | options
    say("compiling the network: the first step and the first validation take minutes")
    begun: list[float] = []
    torch._dynamo.on_compile_start(lambda *_: begun.append(time.perf_counter()))
    torch._dynamo.on_compile_end(lambda *_: say(f"compiled a part in {time.perf_counter() - begun.pop():.0f} s"))
    torch._dynamo.config.recompile_limit = 64  # batches of validation and tests, and windows, have more shapes than 8
    model.compiled = True
    for part in (model, model.backbone, model.encoder, model.decoder):
        part.compile(**options)
