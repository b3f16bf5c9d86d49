"""Time, operations and peak memory of the plain path (`hsnet/naive.py`) and of the library.

Contenders take turns; a time is the median of the repetitions after a warm-up. Memory is the peak beyond the weights, of
one pass in a process of its own. The network's weights are random, which changes no time; the support's mask is a disc
that covers a quarter of the image.
"""

import multiprocessing
import os
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from .. import naive
from ..config import Config
from ..conv4d import KERNELS
from ..correlation import hypercorrelation_pyramid, mask_features, unit_vectors
from ..devices import Memory, choose_precision, describe, is_out_of_memory
from ..engine import pixel_loss
from ..fast import applies, features_of
from ..fast.correlation import correlate_and_convolve, cut
from ..memory import trained_at_a_time
from ..model import HSNet
from ..runs import WEIGHTS, save_model, write_json
from ..segmenter import Segmenter

SIDES = [6, 9, 12, 15, 18]  # positions a side, of four, that the kernels are measured at
SHOTS, BATCH = 5, 4  # of "5-shot" and of "training step"
WORK = ("1-shot", "5-shot", "training step")
READING = {"aten::_local_scalar_dense", "aten::nonzero"}  # the processor waits for what they return


class Bench:
    """A network twice, plain and fast, with the same weights, and something to feed them."""

    def __init__(self, backbone: str, size: int, device: torch.device, batch: int = BATCH):
        torch.manual_seed(0)
        self.device, self.size = device, size
        self.plain = HSNet(backbone, pretrained=False, train_backbone=True).to(device).eval()
        self.plain.backbone.requires_grad_(False)
        self.plain.backbone.trainable = False
        # Random weights get activations of ordinary size, as trained ones have: statistics from one batch of noise.
        network = self.plain.backbone.network
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            network.train()(torch.randn(2, 3, 256, 256, device=device))
        network.eval()
        self.fast = HSNet(backbone, pretrained=False).to(device).eval()
        self.fast.backbone.load_unfolded(network.state_dict())
        learned = {n: t for n, t in self.plain.state_dict().items() if not n.startswith("backbone.")}
        self.fast.load_state_dict(learned, strict=False)
        self.query = torch.randn(batch, 3, size, size, device=device)
        self.support = torch.randn(batch, SHOTS, 3, size, size, device=device)
        self.mask = disc(size).expand(batch, SHOTS, size, size).to(device)

    def run(self, what: str, path: str, dtype: torch.dtype = torch.float32, batch: int = BATCH) -> torch.Tensor:
        """One pass of `what` by the "plain" or the "fast" path; its logits, mask, or gradients. `batch`: of a training step."""
        torch.compiler.cudagraph_mark_step_begin()
        model = getattr(self, path)
        forward, predict = (naive.forward, naive.predict) if path == "plain" else (HSNet.__call__, HSNet.predict)
        with torch.no_grad(), torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            if what == "1-shot":
                return forward(model, self.query[:1], self.support[:1, 0], self.mask[:1, 0])
            if what == "5-shot":
                return predict(model, self.query[:1], self.support[:1], self.mask[:1])
        episodes = self.query[:batch], self.support[:batch, 0], self.mask[:batch, 0]
        model.zero_grad()
        # The fast path takes as many episodes at a time as a training does.
        count = batch if path == "plain" else trained_at_a_time(Config(size=self.size, batch=batch), self.device)
        for query, support, mask in zip(*(tensor.split(count) for tensor in episodes), strict=True):
            with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
                logits = forward(model, query, support, mask)
            (pixel_loss(logits, mask, torch.ones(2, device=self.device)) / episodes[-1].numel()).backward()
        return torch.cat([p.grad.flatten() for p in model.learned_parameters().values()])


def disc(size: int) -> torch.Tensor:
    """A mask (size, size) whose foreground, a disc in the middle, covers a quarter of it."""
    x = (torch.arange(size) + 0.5) / size - 0.5
    return x[:, None] ** 2 + x[None, :] ** 2 < 0.25 / torch.pi


def precisions_of(device: torch.device) -> list[torch.dtype]:
    """float32, and what is fast here."""
    return list(dict.fromkeys([torch.float32, choose_precision("auto", device)]))


def take_turns(contenders: dict[Any, Callable[[], object]], repetitions: int, title: str) -> dict[Any, float]:
    """Median seconds of each; one round to warm up, then rounds in which each runs once."""
    seconds: dict[Any, list[float]] = {name: [] for name in contenders}
    for i in tqdm(range(repetitions + 1), desc=title, unit="round", leave=False):
        for name, contender in contenders.items():
            _wait()
            start = time.perf_counter()
            contender()
            _wait()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _wait():
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Operations(TorchDispatchMode):
    """Within, operations are counted by name, on any device; views, which start nothing on it, are not.

    Attributes:
        names: how often each was started.
    """

    def __init__(self):
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().partition(".")[0]
        if not function.is_view and name not in ("aten::_unsafe_view", "aten::detach"):
            self.names[name] += 1
        return function(*args, **(kwargs or {}))


def count(work: Callable[[], object]) -> dict[str, float]:
    """Of one call: its arithmetic, `gflop` in units of 10⁹, of which a multiply-add is two; the `operations` that it starts
    and, among them, those `reading` back from the device.
    """
    with FlopCounterMode(display=False) as flops, Operations() as started:
        work()
    reading = sum(started.names[name] for name in READING)
    return {"gflop": flops.get_total_flops() / 1e9, "operations": started.names.total(), "reading": reading}


def compare(contenders: dict[Any, Callable[[], object]], repetitions: int, title: str) -> dict[Any, dict]:
    """Of each contender what `take_turns` and `count` measure."""
    seconds = take_turns(contenders, repetitions, title)
    return {name: {"seconds": seconds[name], **count(contender)} for name, contender in contenders.items()}


def machine_limits(device: torch.device, precisions: list[torch.dtype], repetitions: int) -> dict[str, float]:
    """GFLOP/s that a large matrix product reaches here, by precision."""
    side = 2048 if device.type == "cpu" else 8192
    squares = {str(dtype)[6:]: torch.randn(side, side, device=device, dtype=dtype) for dtype in precisions}
    contenders = {name: lambda a=a: a @ a for name, a in squares.items()}
    seconds = take_turns(contenders, repetitions, "the machine's limits")
    return {name: 2 * side**3 / value / 1e9 for name, value in seconds.items()}


@torch.no_grad()
def measure_kernels(sides: list[int], repetitions: int, device: torch.device) -> list[dict]:
    """The three kernels and the plain center-pivot: 16 to 16 channels, kernel 3, stride 1, side⁴ positions."""
    rows = []
    for side in sides:
        convs = {name: kernel(16, 16, 3).to(device) for name, kernel in KERNELS.items()}
        x = torch.randn(1, side, side, side, side, 16, device=device).movedim(-1, 1)
        contenders = {name: (lambda conv=conv, x=x: conv(x)) for name, conv in convs.items()}
        contenders["center-pivot, plain"] = lambda x=x, c=convs["center-pivot"]: naive.convolve_center_pivot(c, x)
        for name, found in compare(contenders, repetitions, f"kernels, {side}⁴ positions").items():
            parameters = sum(p.numel() for p in convs[name.removesuffix(", plain")].parameters())
            rows.append({"kernel": name, "side": side, "parameters": parameters, **found})
    return rows


@torch.no_grad()
def measure_stages(bench: Bench, repetitions: int) -> list[dict]:
    """The stages of one image pair.

    On a CPU the fast path has no correlation of its own to time: it is one with the first squeezing convolution. So both
    paths show that as one stage, and the correlation alone, as plain functions of either path, besides.
    """
    query, support, mask = bench.query[:1], bench.support[:1, 0], bench.mask[:1, 0]
    plain, fast = bench.plain, bench.fast
    query_levels, support_levels = fast.backbone(query), fast.backbone(support)
    blocks = fast.encoder.squeezing
    fuses = applies(fast, query.shape, support.shape)
    plain_query, plain_support = plain.backbone(query), plain.backbone(support)

    def first():
        if not fuses:
            pyramid = hypercorrelation_pyramid(query_levels, mask_features(support_levels, mask))
            return [block.layers[0](x) for block, x in zip(blocks, pyramid, strict=True)]
        return [
            correlate_and_convolve(block.layers[0], [unit_vectors(f) for f in q], cut(s, mask, block.layers[0]))
            for block, q, s in zip(blocks, query_levels, support_levels, strict=True)
        ]

    def rest(begun):
        return [block.after_first(x.clone()) for block, x in zip(blocks, begun, strict=True)]

    def plain_first():
        stacks = naive.pyramid(plain_query, plain_support, mask)
        return [naive.convolve_center_pivot(b.layers[0], x) for b, x in zip(blocks, stacks, strict=True)]

    begun = first()
    squeezed = rest(begun)
    plain_begun = [x.contiguous() for x in begun]
    plain_squeezed = [x.contiguous() for x in squeezed]
    context = fast.encoder.mix(list(squeezed))
    stages = {  # the plain path, the fast one
        "backbone, two images": (
            lambda: (plain.backbone(query), plain.backbone(support)),
            lambda: features_of(fast.backbone, query, support),
        ),
        "correlation alone": (
            lambda: naive.pyramid(plain_query, plain_support, mask),
            lambda: hypercorrelation_pyramid(query_levels, mask_features(support_levels, mask)),
        ),
        "correlation and first convolution": (plain_first, first),
        "rest of the squeezing": (
            lambda: [naive.run(b.layers[1:], x.clone()) for b, x in zip(blocks, plain_begun, strict=True)],
            lambda: rest(begun),
        ),
        "mixing": (
            lambda: naive.mix(fast.encoder, list(plain_squeezed)),
            lambda: fast.encoder.mix(list(squeezed)),
        ),
        "decoding": (lambda: plain.decoder(context), lambda: fast.decoder(context)),
    }
    rows = []
    for stage, pair in stages.items():
        found = compare(dict(zip(("plain", "fast"), pair, strict=True)), repetitions, stage)
        rows += [{"stage": stage, "path": path, **measured} for path, measured in found.items()]
    return rows


def measure_passes(bench: Bench, precisions: list[torch.dtype], repetitions: int) -> list[dict]:
    """1-shot, 5-shot and a training step, and by how much the paths' results differ."""
    rows = []
    for what in WORK:
        expected = bench.run(what, "plain").float()
        keys = [("plain", torch.float32), *(("fast", dtype) for dtype in precisions)]
        contenders = {key: lambda what=what, key=key: bench.run(what, *key) for key in keys}
        found = compare(contenders, repetitions, what)
        for path, dtype in keys:
            row = {"what": what, "path": path, "precision": str(dtype)[6:], **found[path, dtype]}
            if path == "fast":
                row["ratio"] = found[keys[0]]["seconds"] / row["seconds"]
                row["error"] = _error(bench.run(what, path, dtype).float(), expected, what).item()
            rows.append(row)
    return rows


def _error(found, expected, what):
    """Logits: the largest difference in standard deviations; masks: the share of other pixels; gradients: by norm."""
    difference = found - expected
    if what == "1-shot":
        return difference.abs().max() / expected.std()
    return difference.abs().mean() if what == "5-shot" else difference.norm() / expected.norm()


def measure_segmenter(bench: Bench, repetitions: int) -> list[dict]:
    """A fitted `Segmenter` keeps its supports' features: seconds of fit and the first query, and of each further one."""
    pixels = np.random.default_rng(0).integers(0, 256, (SHOTS + 1, bench.size, bench.size, 3), dtype=np.uint8)
    mask = disc(bench.size).numpy()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        bench.fast.training_size = bench.size
        save_model(Path(folder) / WEIGHTS, bench.fast)
        segmenter = Segmenter(folder, device=str(bench.device))
        for shot in (1, SHOTS):
            supports = list(pixels[:shot]), [mask] * shot
            contenders = {
                "first": lambda s=supports: segmenter.fit(*s).predict(pixels[-1]),
                "further": lambda: segmenter.predict(pixels[-1]),
            }
            seconds = take_turns(contenders, repetitions, f"Segmenter, {shot} support{'s'[: shot > 1]}")
            rows.append({"shot": shot, **seconds})
    return rows


def measure_memory(backbone: str, sizes: dict[str, list[int]], device: torch.device) -> list[dict]:
    """Peak bytes beyond weights and input, each of one pass in a process of its own.

    None where memory did not suffice, or where nothing was tried, because the correlations alone, held three times over as
    the plain path does, would fill half of the machine's memory.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    tasks = [(what, size, path) for what in sizes for size in sizes[what] for path in ("plain", "fast")]
    rows = []
    for what, size, path in tqdm(tasks, "memory", unit="process", leave=False):
        measured = {"bytes": None}
        plain = 3 * 4 * 4 * (size / 8) ** 4 * (BATCH if what == "training step" else 1)
        if path == "fast" or plain <= memory / 2:
            threads = torch.get_num_threads()
            spawned = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(1, spawned, torch.set_num_threads, (threads,))
            with suppress(BrokenProcessPool), pool:
                measured = pool.submit(measure_one, backbone, what, path, size, device).result()
        rows.append({"what": what, "path": path, "size": size, **measured})
    return rows


def measure_one(backbone: str, what: str, path: str, size: int, device: torch.device) -> dict:
    """The peak memory of one pass in this process, which has done nothing else but a small pass to load what it needs."""
    Bench(backbone, 64, device).run(what, path)
    bench = Bench(backbone, size, device)
    memory = Memory(device)
    start = time.perf_counter()
    try:
        bench.run(what, path)
        _wait()
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return {"bytes": None}
        raise
    return {"bytes": memory.peak() - memory.before, "seconds": time.perf_counter() - start}


def about(device: torch.device) -> dict:
    """What a measurement was made on."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {"device": describe(device), "threads": torch.get_num_threads(), "versions": versions}


def measure(backbone: str, size: int, device: torch.device, quick: bool, path: Path) -> dict:
    """Everything, as the JSON file `path` holds it; written there also before memory is measured, which takes longest."""
    repetitions = (2 if quick else 5) * (4 if device.type == "cuda" else 1)  # passes take milliseconds there
    precisions = precisions_of(device) + [torch.float16] * (device.type == "cuda")
    sizes = {"1-shot": [size]} if quick else {"1-shot": [256, 400, 600, 800, 1200], "training step": [256, 400]}
    result = {
        **about(device),
        "backbone": backbone,
        "size": size,
        "batch": BATCH,
        "repetitions": repetitions,
        "mask": "a disc that covers a quarter of the image",
        "limits": {"gflops": machine_limits(device, precisions, repetitions)},
        "kernels": measure_kernels(SIDES[:3] if quick else SIDES, repetitions, device),
    }
    bench = Bench(backbone, size, device)
    result["stages"] = measure_stages(bench, repetitions)
    result["whole"] = measure_passes(bench, precisions, repetitions)
    result["segmenter"] = measure_segmenter(bench, repetitions)
    del bench
    write_json(path, result | {"memory": []})
    result["memory"] = measure_memory(backbone, sizes, device)
    write_json(path, result)
    return result
