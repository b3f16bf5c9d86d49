"""How much memory a training step takes, and so how many episodes at a time some memory suffices for.

    PYTHONPATH=book python -m kit.memory                 a few minutes on two cores

Each setting is measured in a process of its own, with one and with two episodes at a time, whose objects fill their
pictures: less of a picture needs less. The network's weights are random, which changes nothing.

Written: data/speed/memory-DEVICE.json, from which `step_memory_table` makes the table of the page `benchmarks`, and
`hsnet.memory` its estimates.
"""

import multiprocessing
import platform
import sys
from concurrent.futures import ProcessPoolExecutor

import torch
from tqdm import tqdm

from hsnet.config import Config, run_program
from hsnet.devices import Memory, choose_device, choose_precision, computing_in, describe
from hsnet.engine import pixel_loss
from hsnet.model import HSNet
from hsnet.optim import make_optimizers
from hsnet.paths import data_folder
from hsnet.runs import markdown, write_json

SETTINGS = [  # backbone, pixels, precision
    ("efficientnet_lite0", 256, "float32"),
    ("vgg16", 400, "float32"),
    ("resnet50", 256, "float32"),
    ("resnet50", 400, "float32"),
    ("resnet50", 400, "auto"),
    ("resnet101", 400, "float32"),
]


def measure_one(backbone: str, size: int, precision: str, recompute: bool, device: torch.device) -> dict:
    """Bytes of one setting: what is there whatever the number of episodes at a time, and what each of them takes."""
    dtype = choose_precision(precision, device)
    before = Memory(device)
    model = HSNet(backbone, pretrained=False).to(device).train()
    model.encoder.recompute = recompute
    optimizers = make_optimizers(Config(optimizer="adam"), model.learned_parameters())
    peaks = []
    for count in (1, 1, 2):  # the first makes gradients and the optimizer's state, and loads what libraries need
        pixels = torch.randn(count, 3, size, size, device=device)
        mask = torch.ones(count, size, size, dtype=torch.bool, device=device)
        memory = Memory(device)
        with computing_in(dtype, device):
            logits = model(pixels, pixels, mask)
        (pixel_loss(logits, mask, torch.ones(2, device=device)) / mask.numel()).backward()
        peaks.append(memory.peak() - memory.before)
        for optimizer in optimizers:
            optimizer.step()
    each = max(0, peaks[2] - peaks[1])
    held = memory.before - before.before + max(0, peaks[1] - each)
    return {"precision": str(dtype)[6:], "fixed": held, "each": each}


def step_memory_table(result: dict) -> str:
    """Markdown: the memory of a training step by setting, and the largest `--micro-batch` for some sizes of memory."""
    sizes = (4, 8, 12, 24)
    rows = []
    for r in result["rows"]:
        what = f"{r['backbone']}, {r['size']} px, {r['precision']}" + ", `--recompute`" * r["recompute"]
        counts = [int((size * 1e9 - r["fixed"]) // max(1, r["each"])) for size in sizes]
        memory = f"{r['fixed'] / 1e9:.2f}\N{NO-BREAK SPACE}GB", f"{r['each'] / 1e9:.3f}\N{NO-BREAK SPACE}GB"
        rows.append([what, *memory, *(str(count) if count > 0 else "–" for count in counts)])
    header = ["training step", "fixed", "per episode"]
    return markdown([*header, *(f"episodes in {size} GB" for size in sizes)], rows)


def main() -> None:
    """The program; its one argument is a device."""
    device = choose_device(*sys.argv[1:2] or ["auto"])
    rows = []
    for backbone, size, precision in tqdm(SETTINGS, desc="memory", unit="setting"):
        if precision == "auto" and choose_precision("auto", device) == torch.float32:
            continue
        for recompute in (False, True):
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                measured = pool.submit(measure_one, backbone, size, precision, recompute, device).result()
            rows.append({"backbone": backbone, "size": size, "recompute": recompute, **measured})
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    result = {"device": describe(device), "versions": versions, "rows": rows}
    path = data_folder() / "speed" / f"memory-{device.type}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, result)
    print(f"{step_memory_table(result)}\nwritten to {path}")


if __name__ == "__main__":
    run_program(main)
