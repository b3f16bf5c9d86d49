"""Where things lie: the checkout, its data, and the images of the benchmarks."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # the checkout


def data_folder() -> Path:
    """Where runs, drawings and downloads lie: `HSNET_DATA`, else the checkout's `data/`."""
    return Path(os.environ.get("HSNET_DATA") or ROOT / "data")


def images_folder(benchmark: str, root: str | Path = "") -> Path:
    """Where a benchmark's images lie: `root`, else `HSNET_IMAGES`/NAME, else NAME in the data folder."""
    return Path(root or Path(os.environ.get("HSNET_IMAGES") or data_folder()) / benchmark)
