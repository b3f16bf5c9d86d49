"""How fast the loader reads, from files and from the cache, beside what a training step takes.

    PYTHONPATH=book python -m kit.reading pascal     written: data/speed/DEVICE-resnet50-reading.json

The benchmark is one that `hsnet.prepare` has prepared, with `--cache 400` for the second half.
"""

import os
import sys
import time

from tqdm import tqdm

from hsnet import EpisodeDataset
from hsnet.benchmarks import load_benchmark
from hsnet.config import run_program
from hsnet.devices import choose_device, choose_workers
from hsnet.paths import data_folder
from hsnet.runs import markdown, write_json
from hsnet.speed.measure import BATCH, Bench, about, precisions_of, take_turns


def measure_reading(benchmark: str, size: int, episodes: int, workers: list[int]) -> dict:
    """Training episodes a second that the loader gives, batches of 20: from files, and from the cache if there is one."""
    opened, rows = load_benchmark(benchmark, size=size), []
    for source, cache in {"files": None, "cache": opened.cache}.items():
        opened.cache = cache
        dataset = EpisodeDataset(opened, size, fold=0, count=episodes)
        for processes in workers if source == "files" or cache else ():
            start = time.perf_counter()
            for _ in tqdm(dataset.loader(20, processes), f"{source}, {processes} workers", leave=False):
                pass
            rate = episodes / (time.perf_counter() - start)
            rows.append({"source": source, "workers": processes, "episodes_per_second": rate})
    return {"images": benchmark, "episodes": episodes, "cores": os.cpu_count(), "rows": rows}


def measure_consumption(backbone: str, size: int, device, repetitions: int) -> list[dict]:
    """Episodes a second of training steps, forward and backward, in each precision that makes sense here."""
    bench = Bench(backbone, size, device)
    contenders = {str(d)[6:]: lambda d=d: bench.run("training step", "fast", d) for d in precisions_of(device)}
    seconds = take_turns(contenders, repetitions, "training step")
    return [{"backbone": backbone, "precision": p, "episodes_per_second": BATCH / s} for p, s in seconds.items()]


def reading_table(result: dict) -> str:
    """Markdown, with a line above: episodes a second that are read and trained on."""
    found = {f"{r['source']}, workers: {r['workers']}": r for r in result["reading"]["rows"]}
    found |= {f"training steps, {r['backbone']}, {r['precision']}": r for r in result["consumption"]}
    rows = [[what, f"{r['episodes_per_second']:.1f}"] for what, r in found.items()]
    heading = f"{result['device']}, {result['size']} px, {result['reading']['cores']} cores"
    return f"{heading}\n\n{markdown(['what', 'episodes a second'], rows)}"


def main() -> None:
    """The program."""
    backbone, size, device = "resnet50", 400, choose_device()
    reading = measure_reading(sys.argv[1], size, 1000, sorted({0, 1, choose_workers(-1)}))
    result = about(device) | {"size": size, "reading": reading}
    result["consumption"] = measure_consumption(backbone, size, device, 5)
    write_json(data_folder() / "speed" / f"{device.type}-{backbone}-reading.json", result)
    print(reading_table(result))


if __name__ == "__main__":
    run_program(main)
