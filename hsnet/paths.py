"""Where things lie: the checkout or the installed package, its data, and the images of the benchmarks."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # the checkout
IS_CHECKOUT = (ROOT / "pyproject.toml").exists()
# What comes with the library: the weights, the checksums of lists, the paper's tables and the concepts. A wheel holds copies.
SHIPPED = ROOT / "data" if IS_CHECKOUT else ROOT / "hsnet" / "data"


def data_folder() -> Path:
    """Where runs, drawings and downloads lie: `HSNET_DATA`, else the checkout's `data/`, else `hsnet-data` in the current folder."""
    return Path(os.environ.get("HSNET_DATA") or (SHIPPED if IS_CHECKOUT else "hsnet-data"))


def images_folder(benchmark: str, root: str | Path = "") -> Path:
    """Where a benchmark's images lie: `root`, else `HSNET_IMAGES`/NAME, else NAME in the data folder."""
    return Path(root or Path(os.environ.get("HSNET_IMAGES") or data_folder()) / benchmark)
