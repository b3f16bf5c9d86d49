"""Measure speed and memory against the plain path (`hsnet/naive.py`), in one run, side by side.

    python -m hsnet.speed                  everything: about a quarter of an hour on two cores
    python -m hsnet.speed --quick          fewer sizes and repetitions: two minutes
    python -m hsnet.speed --reading        instead: how many episodes a second are read, and how many the network takes
    python -m hsnet.speed --score RUN      instead: by how much half precision moves a run's test score

The plain path is the same mathematics written the obvious way: BatchNorm beside its convolution, correlations computed
one by one and copied into stacks, 4D convolutions as permute, copy, reshape, and one whole network pass per support.
Contenders take turns; a time is the median of the repetitions after a warm-up; memory is the peak beyond the weights, of
one pass in a process of its own. The network's weights are random, which changes no time; the support's mask is a disc
that covers a quarter of the image.

Written: data/speed/NAME.json with every figure and what it was measured on, and NAME.png, its curves. After Ctrl-C while
memory is measured, which comes last and takes longest, the file has the rest.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from .. import naive
from ..benchmarks import Episode, benchmark_of
from ..benchmarks.cache import Cache, build_cache
from ..benchmarks.listed import BOUNDARY
from ..benchmarks.pascal import Pascal
from ..config import Config, data_folder, run_program
from ..conv4d import KERNELS
from ..correlation import hypercorrelation_pyramid, mask_features, unit_vectors
from ..devices import Memory, choose_device, choose_precision, describe
from ..engine import choose_workers, evaluate, predictor
from ..episodes import EpisodeDataset, test_episodes
from ..fast.correlation import correlate_and_convolve, cut
from ..figures import save
from ..model import HSNet
from ..reproduce.report import memory_table, precision_table, speed_table
from ..runs import WEIGHTS, markdown, run_folder, save_model, write_json
from ..segmenter import Segmenter
from ..train import backward

SIDES = [6, 9, 12, 15, 18]  # positions a side, of four, that the kernels are measured at
SHOTS, BATCH = 5, 4  # of "5-shot" and of "training step"
WORK = ("1-shot", "5-shot", "training step")


class Bench:
    """A network twice, plain and fast, with the same weights, and something to feed them."""

    def __init__(self, backbone: str, size: int, device: torch.device):
        torch.manual_seed(0)
        self.device, self.size = device, size
        self.plain = HSNet(backbone, pretrained=False, train_backbone=True).to(device).eval()
        self.plain.backbone.requires_grad_(False)
        self.plain.backbone.trainable = False
        _settle(self.plain.backbone.network, device)
        self.fast = HSNet(backbone, pretrained=False).to(device).eval()
        self.fast.backbone.load_unfolded(self.plain.backbone.network.state_dict())
        self.fast.load_state_dict(
            {n: t for n, t in self.plain.state_dict().items() if not n.startswith("backbone.")}, strict=False
        )
        self.query = torch.randn(BATCH, 3, size, size, device=device)
        self.support = torch.randn(BATCH, SHOTS, 3, size, size, device=device)
        self.mask = disc(size).expand(BATCH, SHOTS, size, size).to(device)

    def run(self, what: str, path: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """One pass of `what` by the "plain" or the "fast" path; its logits, mask, or gradients."""
        forward = naive.forward if path == "plain" else HSNet.forward
        predict = naive.predict if path == "plain" else HSNet.predict
        model = getattr(self, path)
        with torch.no_grad(), torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            if what == "1-shot":
                return forward(model, self.query[:1], self.support[:1, 0], self.mask[:1, 0])
            if what == "5-shot":
                return predict(model, self.query[:1], self.support[:1], self.mask[:1])
        batch = self.query, self.support[:, 0], self.mask[:, 0]
        model.zero_grad()
        if path == "fast":
            backward(model, *batch, self.mask[:, 0], torch.ones(2, device=self.device), dtype)
        else:
            F.cross_entropy(forward(model, *batch), self.mask[:, 0].long()).backward()
        return torch.cat([p.grad.flatten() for p in model.learned_parameters().values()])


def disc(size: int) -> torch.Tensor:
    """A mask (size, size) whose foreground, a disc in the middle, covers a quarter of it."""
    x = (torch.arange(size) + 0.5) / size - 0.5
    return x[:, None] ** 2 + x[None, :] ** 2 < 0.25 / torch.pi


def _settle(network, device):
    """Give random weights activations of ordinary size, as trained ones have: statistics from one batch of noise."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    network.train()
    with torch.no_grad():
        network(torch.randn(2, 3, 256, 256, device=device))
    network.eval()


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


class _Traffic(TorchDispatchMode):
    """Adds up the bytes of the tensors that operations read and write, as if there were no cache."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        read = [t for t in tree_leaves((arguments, keywords)) if isinstance(t, torch.Tensor)]
        written = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        memory = {t.untyped_storage().data_ptr() for t in read}
        is_view = not function._schema.is_mutable and all(t.untyped_storage().data_ptr() in memory for t in written)
        if not is_view:
            self.bytes += sum(t.numel() * t.element_size() for t in read + written)
        return result


def count(work: Callable[[], object]) -> dict[str, float]:
    """Operations (a multiply-add is two) and bytes of one call, in units of 10⁹."""
    with FlopCounterMode(display=False) as flops, _Traffic() as traffic:
        work()
    return {"gflop": flops.get_total_flops() / 1e9, "gbyte": traffic.bytes / 1e9}


def machine_limits(device: torch.device, precisions: list[torch.dtype], repetitions: int) -> dict:
    """What a large matrix product and a large copy reach here: GFLOP/s per precision, GB/s read plus written."""
    side = 2048 if device.type == "cpu" else 8192
    products = {}
    for dtype in precisions:
        a = torch.randn(side, side, device=device, dtype=dtype)
        products[str(dtype)[6:]] = lambda a=a: a @ a
    a = torch.zeros(2**28 // 4, device=device)
    b = torch.zeros_like(a)
    seconds = take_turns(products | {"copy": lambda: b.copy_(a)}, repetitions, "the machine's limits")
    copy = seconds.pop("copy")
    return {
        "gflops": {name: 2 * side**3 / value / 1e9 for name, value in seconds.items()},
        "gbytes": 2 * a.numel() * 4 / copy / 1e9,
    }


def measure_kernels(sides: list[int], repetitions: int, device: torch.device) -> list[dict]:
    """(a) The three kernels and the plain center-pivot: 16 to 16 channels, kernel 3, stride 1, side⁴ positions."""
    rows = []
    for side in sides:
        convs = {name: kernel(16, 16, 3).to(device) for name, kernel in KERNELS.items()}
        x = torch.randn(1, side, side, side, side, 16, device=device).movedim(-1, 1)
        contenders = {name: (lambda conv=conv, x=x: conv(x)) for name, conv in convs.items()}
        contenders["center-pivot, plain"] = lambda x=x, c=convs["center-pivot"]: naive.convolve_center_pivot(c, x)
        with torch.no_grad():
            seconds = take_turns(contenders, repetitions, f"kernels, {side}⁴ positions")
            for name, work in contenders.items():
                parameters = sum(p.numel() for p in convs[name.removesuffix(", plain")].parameters())
                rows.append(
                    {"kernel": name, "side": side, "seconds": seconds[name], "parameters": parameters, **count(work)}
                )
    return rows


@torch.no_grad()
def measure_stages(bench: Bench, repetitions: int) -> list[dict]:
    """(b) The stages of one image pair.

    On a CPU the fast path has no correlation of its own to time: it is one with the first squeezing convolution. So both paths
    show that as one stage, and the correlation alone, as plain functions of either path, besides.
    """
    query, support, mask = bench.query[:1], bench.support[:1, 0], bench.mask[:1, 0]
    plain, fast = bench.plain, bench.fast
    query_levels, support_levels = fast.backbone(query), fast.backbone(support)
    blocks = fast.encoder.squeezing
    fuses = fast.fuses(1, *(levels[0][0][0, 0].numel() for levels in (query_levels, support_levels)))
    plain_query, plain_support = plain.backbone(query), plain.backbone(support)

    def first():
        if not fuses:
            pyramid = hypercorrelation_pyramid(query_levels, mask_features(support_levels, mask))
            yield from (block.layers[0](x) for block, x in zip(blocks, pyramid, strict=True))
            return
        for block, q, s in zip(blocks, query_levels, support_levels, strict=True):
            yield correlate_and_convolve(block.layers[0], [unit_vectors(f) for f in q], cut(s, mask, block.layers[0]))

    def rest(begun):
        return [block.after_first(x.clone()) for block, x in zip(blocks, begun, strict=True)]

    def plain_first():
        stacks = naive.pyramid(plain_query, plain_support, mask)
        return [naive.convolve_center_pivot(b.layers[0], x) for b, x in zip(blocks, stacks, strict=True)]

    begun = list(first())
    squeezed = rest(begun)
    plain_begun = [x.contiguous() for x in begun]
    plain_squeezed = [x.contiguous() for x in squeezed]
    context = fast.encoder.mix(list(squeezed))
    stages = {
        "backbone, two images": {
            "plain": lambda: (plain.backbone(query), plain.backbone(support)),
            "fast": lambda: (fast.backbone(query), fast.backbone(support)),
        },
        "correlation alone": {
            "plain": lambda: naive.pyramid(plain_query, plain_support, mask),
            "fast": lambda: hypercorrelation_pyramid(query_levels, mask_features(support_levels, mask)),
        },
        "correlation and first convolution": {"plain": plain_first, "fast": lambda: list(first())},
        "rest of the squeezing": {
            "plain": lambda: [naive.run(b.layers[1:], x.clone()) for b, x in zip(blocks, plain_begun, strict=True)],
            "fast": lambda: rest(begun),
        },
        "mixing": {
            "plain": lambda: naive.mix(fast.encoder, list(plain_squeezed)),
            "fast": lambda: fast.encoder.mix(list(squeezed)),
        },
        "decoding": {"plain": lambda: plain.decoder(context), "fast": lambda: fast.decoder(context)},
    }
    rows = []
    for stage, contenders in stages.items():
        seconds = take_turns(contenders, repetitions, stage)
        for path, work in contenders.items():
            rows.append({"stage": stage, "path": path, "seconds": seconds[path], **count(work)})
    return rows


def measure_whole(bench: Bench, precisions: list[torch.dtype], repetitions: int) -> list[dict]:
    """(c) 1-shot, 5-shot and a training step, and by how much the paths' results differ."""
    rows = []
    for what in WORK:
        expected = bench.run(what, "plain").float()
        contenders = {("plain", torch.float32): lambda what=what: bench.run(what, "plain")}
        for dtype in precisions:
            contenders["fast", dtype] = lambda what=what, dtype=dtype: bench.run(what, "fast", dtype)
        seconds = take_turns(contenders, repetitions, what)
        for (path, dtype), work in contenders.items():
            row = {
                "what": what,
                "path": path,
                "precision": str(dtype)[6:],
                "seconds": seconds[path, dtype],
                **count(work),
            }
            if path == "fast":
                row["ratio"] = seconds["plain", torch.float32] / seconds[path, dtype]
                error = _error(work().float(), expected, what)
                row["error"] = error.item()
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

    None where it did not fit, or was not tried because the correlations alone, held three times over as the plain path
    does, would fill half of the machine's memory.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    tasks = [(what, path, size) for what in sizes for size in sizes[what] for path in ("plain", "fast")]

    def run(task):
        what, path, size = task
        row = {"what": what, "path": path, "size": size, "bytes": None}
        if path == "plain" and 3 * 4 * 4 * (size / 8) ** 4 * (BATCH if what == "training step" else 1) > memory / 2:
            return row
        command = [sys.executable, "-m", "hsnet.speed", "--one", what, path, "--size", str(size)]
        command += ["--backbone", backbone, "--device", str(device), "--threads", str(torch.get_num_threads())]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            return row | json.loads(done.stdout)
        if done.returncode > 0 and "memory" not in done.stderr:  # a signal, such as the kernel's, is no mistake of ours
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
        return row

    # Several at a time on a GPU, where only a process's own tensors are counted.
    with ThreadPoolExecutor(4 if device.type == "cuda" else 1) as pool:
        return list(tqdm(pool.map(run, tasks), "memory", len(tasks), unit="process", leave=False))


def measure_one(backbone: str, what: str, path: str, size: int, device: torch.device) -> dict:
    """The peak memory of one pass in this process, which has done nothing else but a small pass to load what it needs."""
    bench = Bench(backbone, 64, device)
    bench.run(what, path)
    bench = Bench(backbone, size, device)
    memory = Memory(device)
    start = time.perf_counter()
    bench.run(what, path)
    _wait()
    return {"bytes": memory.peak() - memory.before, "seconds": time.perf_counter() - start}


class _Generated(Pascal):
    """A tree in PASCAL's layout: COUNT drawn pictures of VOC's usual 500 × 375 pixels."""

    COUNT = 100

    def __init__(self, root: Path):
        super().__init__(root)
        rng = np.random.default_rng(0)
        for folder in (self.image_path("x").parent, self.mask_path("x").parent):
            folder.mkdir(parents=True)
        for name in self.files():
            # Smooth shapes and fine grain: JPEGs of about 100 kB, as VOC's are.
            smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((500, 375))
            grain = rng.normal(0, 12, (375, 500, 3))
            pixels = np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(self.image_path(name), quality=90)
            labels = np.zeros((375, 500), np.uint8)
            labels[100:300, 120:400] = BOUNDARY
            labels[105:295, 125:395] = 1
            Image.fromarray(labels).save(self.mask_path(name))

    def files(self) -> list[str]:
        """The names."""
        return [f"{i:06d}" for i in range(self.COUNT)]

    def listed(self, part: str) -> list[tuple[str, int]]:
        """Each shows every class, so that every fold has episodes."""
        return [(name, c) for name in self.files() for c in range(len(self.class_names))]


def measure_reading(size: int, episodes: int, workers: list[int]) -> dict:
    """Episodes a second that the loader gives, 1-shot, batches of 20: decoded from files, and from the cache.

    The files are in the system's memory: the disk is not measured.
    """
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        benchmark = _Generated(Path(folder))
        files = benchmark.files()
        pairs = [(files[i % len(files)], files[(i + 1) % len(files)]) for i in range(episodes)]
        dataset = EpisodeDataset(benchmark, size, [Episode(query, (support,), 0) for query, support in pairs])
        build_cache(benchmark, size)
        sources = {"files": None, "cache": Cache.of(benchmark, size)}
        for count in workers:
            for source, cache in sources.items():
                benchmark.cache = cache
                start = time.perf_counter()
                for _ in tqdm(dataset.loader(20, count), desc=f"{source}, {count} workers", unit="batch", leave=False):
                    pass
                seconds = time.perf_counter() - start
                rows.append({"source": source, "workers": count, "episodes_per_second": episodes / seconds})
    return {
        "images": f"{len(files)} drawn JPEGs of 500 × 375 pixels",
        "episodes": episodes,
        "cores": os.cpu_count(),
        "rows": rows,
    }


def measure_consumption(backbone: str, size: int, device: torch.device, repetitions: int) -> list[dict]:
    """Episodes a second of training steps, forward and backward, in each precision that makes sense here."""
    bench = Bench(backbone, size, device)
    precisions = list(dict.fromkeys([torch.float32, choose_precision("auto", device)]))
    contenders = {dtype: lambda dtype=dtype: bench.run("training step", "fast", dtype) for dtype in precisions}
    seconds = take_turns(contenders, repetitions, "training step")
    return [
        {"backbone": backbone, "precision": str(d)[6:], "episodes_per_second": BATCH / s} for d, s in seconds.items()
    ]


def measure_score(run: str, device: torch.device) -> dict:
    """The 1-shot test of a run in float32 and in the precision that is fast here: the same episodes, the same weights."""
    folder = run_folder(run)
    config = Config.load(folder / "config.json")
    benchmark = benchmark_of(config)
    model = HSNet.from_run(folder).to(device).eval()
    precisions = list(dict.fromkeys([torch.float32, choose_precision("auto", device)]))
    predictors = {str(dtype)[6:]: predictor(model, device, dtype, rule=config.rule) for dtype in precisions}
    episodes = test_episodes(benchmark, fold=config.fold, shot=1, count=config.test_episodes)
    scores = evaluate(
        lambda batch: {name: predict(batch)["HSNet"] for name, predict in predictors.items()},
        EpisodeDataset(benchmark, config.size, episodes),
        benchmark.classes(config.fold, "test"),
        batch=config.batch,
        workers=choose_workers(config.workers),
        title="test in each precision",
    )
    exact = scores["float32"]
    rows = [
        {"precision": name, **score.summary(), "difference": score.miou() - exact.miou()}
        | {"difference_interval": score.interval_above(exact)}
        for name, score in scores.items()
    ]
    return {"run": folder.name, "size": config.size, "digest": benchmark.digest(), "rows": rows}


def about(device: torch.device) -> dict:
    """What a measurement was made on."""
    return {
        "device": describe(device),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def measure(backbone: str, size: int, device: torch.device, quick: bool, path: Path) -> dict:
    """Everything, as the JSON file `path` holds it; written there also before memory is measured, which takes longest."""
    repetitions = (2 if quick else 5) * (4 if device.type == "cuda" else 1)  # passes take milliseconds there
    precisions = list(dict.fromkeys([torch.float32, choose_precision("auto", device)]))
    if device.type == "cuda":
        precisions.append(torch.float16)
    sizes = [size] if quick else [256, 400, 600, 800, 1200]
    memory = {"1-shot": sizes} | ({} if quick else {"training step": [256, 400]})
    result = {
        **about(device),
        "backbone": backbone,
        "size": size,
        "batch": BATCH,
        "repetitions": repetitions,
        "mask": "a disc that covers a quarter of the image",
        "limits": machine_limits(device, precisions, repetitions),
        "kernels": measure_kernels(SIDES[:3] if quick else SIDES, repetitions, device),
    }
    bench = Bench(backbone, size, device)
    result["stages"] = measure_stages(bench, repetitions)
    result["whole"] = measure_whole(bench, precisions, repetitions)
    result["segmenter"] = measure_segmenter(bench, repetitions)
    del bench
    write_json(path, result | {"memory": []})
    result["memory"] = measure_memory(backbone, memory, device)
    write_json(path, result)
    return result


def report(result: dict) -> str:
    """The figures in words: a table each of limits, stages, whole passes, the segmenter and memory."""
    limits = result["limits"]
    products = ", ".join(f"{value:.0f} GFLOP/s in {name}" for name, value in limits["gflops"].items())
    lines = [
        f"{result['device']}; {result['backbone']}, {result['size']} px; mask: {result['mask']}",
        f"a large matrix product reaches {products}; a large copy {limits['gbytes']:.0f} GB/s",
        "",
        markdown(
            ["kernel", "positions", "ms", "GFLOP", "GFLOP/s", "GB/s", "parameters"],
            [[r["kernel"], f"{r['side']}⁴", *_rates(r), f"{r['parameters']:,}"] for r in result["kernels"]],
        ),
        "",
        markdown(
            ["stage", "path", "ms", "GFLOP", "GFLOP/s", "GB/s"],
            [[r["stage"], r["path"], *_rates(r)] for r in result["stages"]],
        ),
        "",
        speed_table(result),
        "",
        memory_table(result),
    ]
    return "\n".join(lines)


def reading_report(result: dict) -> str:
    """What `--reading` measured: a table."""
    rows = [[f"{r['source']}, {r['workers']} workers", r] for r in result["reading"]["rows"]]
    rows += [[f"a training step takes, {r['backbone']}, {r['precision']}", r] for r in result["consumption"]]
    table = markdown(["", "episodes a second"], [[what, f"{r['episodes_per_second']:.1f}"] for what, r in rows])
    return f"{result['device']}, {result['size']} px, {result['reading']['cores']} cores\n\n{table}"


def _rates(row):
    seconds = row["seconds"]
    figures = 1000 * seconds, row["gflop"], row["gflop"] / seconds, row["gbyte"] / seconds
    return [f"{figures[0]:.1f}", f"{figures[1]:.2f}", f"{figures[2]:.0f}", f"{figures[3]:.0f}"]


def draw(result: dict) -> plt.Figure:
    """Curves: time of the kernels, time of the stages, memory by size."""
    figure, (kernels, stages, memory) = plt.subplots(1, 3, figsize=(10.5, 3.6))
    figure.patch.set_facecolor("white")
    styles = {
        "dense": ("o-", "#495057"),
        "separable": ("s--", "#1c7ed6"),
        "center-pivot": ("D-", "#d9480f"),
        "center-pivot, plain": ("D:", "#d9480f"),
    }
    for name, (style, colour) in styles.items():
        rows = [r for r in result["kernels"] if r["kernel"] == name]
        kernels.plot([r["side"] for r in rows], [1000 * r["seconds"] for r in rows], style, color=colour, label=name)
    kernels.set(
        xlabel="positions a side, of four", ylabel="milliseconds", yscale="log", title="4D kernels, 16 to 16 channels"
    )
    kernels.legend(fontsize=8, frameon=False)
    names = list(dict.fromkeys(r["stage"] for r in result["stages"]))
    for offset, path, colour in ((-0.2, "plain", "#adb5bd"), (0.2, "fast", "#d9480f")):
        rows = {r["stage"]: r for r in result["stages"] if r["path"] == path}
        places = [i + offset for i in range(len(names))]
        stages.barh(places, [1000 * rows[n]["seconds"] for n in names], 0.38, color=colour, label=path)
    stages.set_yticks(range(len(names)), [n.replace(" and ", "\nand ") for n in names], fontsize=8)
    stages.invert_yaxis()
    stages.set(xlabel="milliseconds", title=f"one image pair, {result['backbone']}, {result['size']} px")
    stages.legend(fontsize=8, frameon=False)
    for path, style, colour in (("plain", "o--", "#495057"), ("fast", "D-", "#d9480f")):
        rows = [r for r in result["memory"] if r["what"] == "1-shot" and r["path"] == path and r["bytes"]]
        memory.plot([r["size"] for r in rows], [r["bytes"] / 1e9 for r in rows], style, color=colour, label=path)
    memory.set(xlabel="pixels a side", ylabel="GB", yscale="log", title="peak memory of 1-shot")
    memory.legend(fontsize=8, frameon=False)
    for axis in (kernels, stages, memory):
        axis.spines[["top", "right"]].set_visible(False)
        axis.title.set_fontsize(10)
    figure.tight_layout()
    return figure


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        prog="python -m hsnet.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer sizes and repetitions")
    parser.add_argument("--backbone", default="resnet50", help="vgg16, resnet50, resnet101 or efficientnet_lite0")
    parser.add_argument("--size", type=int, default=400, help="side of the images in pixels (default: 400)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, … (default: auto)")
    parser.add_argument("--threads", type=int, default=0, help="threads on a CPU (default: PyTorch's choice)")
    parser.add_argument("--name", help="name of the files under data/speed (default: device and backbone)")
    parser.add_argument("--reading", action="store_true", help="instead: episodes a second, read and trained on")
    parser.add_argument("--score", metavar="RUN", help="instead: the test score of a run in each precision")
    parser.add_argument("--one", nargs=2, metavar=("WHAT", "PATH"), help=argparse.SUPPRESS)  # see measure_memory
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.one:
        print(json.dumps(measure_one(arguments.backbone, *arguments.one, arguments.size, device)))
        return
    folder = data_folder() / "speed"
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.reading:
        result = {
            **about(device),
            "size": arguments.size,
            "reading": measure_reading(
                arguments.size, 200 if arguments.quick else 1000, sorted({0, 1, choose_workers(-1)})
            ),
            "consumption": measure_consumption(arguments.backbone, arguments.size, device, 2 if arguments.quick else 5),
        }
        path = folder / f"{arguments.name or f'{device.type}-{arguments.backbone}-reading'}.json"
        write_json(path, result)
        print(f"{reading_report(result)}\n\nfigures  {path}")
        return
    if arguments.score:
        result = about(device) | measure_score(arguments.score, device)
        path = folder / f"{arguments.name or f'{device.type}-score'}.json"
        write_json(path, result)
        print(f"{precision_table(result)}\n\nfigures  {path}")
        return
    name = arguments.name or f"{device.type}-{arguments.backbone}" + "-quick" * arguments.quick
    path = folder / f"{name}.json"
    result = measure(arguments.backbone, arguments.size, device, arguments.quick, path)
    save(draw(result), folder / f"{name}.png")
    print(report(result))
    print(f"\nfigures  {path}\ncurves   {folder / name}.png")


if __name__ == "__main__":
    run_program(main)
