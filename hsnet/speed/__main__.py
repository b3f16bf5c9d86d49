"""Measure speed and memory against the plain path (`hsnet/naive.py`), in one run, side by side.

    python -m hsnet.speed                  everything: about a quarter of an hour on two cores
    python -m hsnet.speed --quick          fewer sizes and repetitions: two minutes

The plain path is a direct implementation of the same mathematics: separate batch normalisation, correlations computed
one by one and copied into stacks, 4D convolutions as permute, copy, reshape, and a full network pass per support.

The results and the machine are written to data/speed/NAME.json, from which the book's page on speed draws its curves.
Memory is measured last and takes longest; after Ctrl-C during it, the file contains the other results.
"""

import torch
from tabulate import tabulate

from ..config import command_line, run_program
from ..devices import choose_device
from ..paths import data_folder
from .measure import measure


def report(result: dict) -> str:
    """A table of each list of measurements, and the other entries in a line each."""
    parts = []
    for name, value in result.items():
        rows = value if isinstance(value, list) and value and isinstance(value[0], dict) else None
        parts.append(f"\n{name}\n{tabulate(rows, headers='keys', floatfmt='.4g')}" if rows else f"{name}: {value}")
    return "\n".join(parts)


def main() -> None:
    """The program."""
    parser = command_line("speed", __doc__)
    option = parser.add_argument
    option("--quick", action="store_true", help="fewer sizes and repetitions")
    option("--backbone", default="resnet50", help="backbone, as in hsnet.train (default: resnet50)")
    option("--size", type=int, default=400, help="side of the images in pixels (default: 400)")
    option("--device", default="auto", help="auto, cpu, cuda, … (default: auto)")
    option("--threads", type=int, default=0, help="threads on a CPU (default: PyTorch's choice)")
    option("--name", help="name of the files under data/speed (default: device and backbone)")
    arguments = parser.parse_args()
    device = choose_device(arguments.device)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    name = arguments.name or f"{device.type}-{arguments.backbone}" + "-quick" * arguments.quick
    path = data_folder() / "speed" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    result = measure(arguments.backbone, arguments.size, device, arguments.quick, path)
    print(f"{report(result)}\n\nwritten to {path}")


if __name__ == "__main__":
    run_program(main)
