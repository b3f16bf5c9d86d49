"""Everything that the book's in-browser page loads, written beside its script.

    PYTHONPATH=book python -m kit.browser --out FOLDER

- the run's graphs (`hsnet.export`);
- onnxruntime-web, which computes them in a browser: with the processor (WebAssembly) or the graphics card (WebGPU). Its
  files are tens of megabytes and are not kept in the repository: npm fetches the published package once into the data
  folder, and its sha256 is compared;
- a few episodes of the embedded benchmark and two photographs to begin with.

Each file becomes a script that holds it in base64. Browsers let a page that was opened from a folder (file://) load
scripts but not fetch files: so it works there too, and from any static server.
"""

import argparse
import base64
import io
import json
import tarfile
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from hsnet.benchmarks import load_benchmark
from hsnet.config import run_program
from hsnet.episodes import test_episodes
from hsnet.export import make_graphs, write_graphs
from hsnet.model import HSNet
from hsnet.paths import data_folder
from hsnet.prepare.downloads import fetch_npm
from hsnet.runs import DEFAULT_RUN
from kit.figures import png_address
from kit.pages import PHOTOGRAPHERS, bowls, episode_of, photographs, thread

PACKAGE = "onnxruntime-web@1.30.0"
SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
# Loaded as scripts, and held in base64: the runtime's glue and its code, for the processor and for the graphics card.
SCRIPTS = ("ort.wasm.min.js", "ort.webgpu.min.js")
BINARIES = tuple(f"ort-wasm-simd-threaded{kind}.{suffix}" for kind in ("", ".asyncify") for suffix in ("mjs", "wasm"))
PLACES = (3, 17)  # of the built-in episodes, beside the pages' own, among the 5-shot test episodes


def write_runtime(tarball: Path, out: Path) -> None:
    """Write what a browser needs of onnxruntime-web."""
    with tarfile.open(tarball) as archive:
        for name in SCRIPTS:
            (out / name).write_bytes(archive.extractfile(f"package/dist/{name}").read())
        for name in BINARIES:
            write_script(out, name, archive.extractfile(f"package/dist/{name}").read())


def write_script(out: Path, name: str, content: bytes) -> None:
    """Write a file as a script that leaves it in `hsnetFiles`, in base64."""
    text = base64.b64encode(content).decode()
    (out / f"{name}.js").write_text(f"globalThis.hsnetFiles[{json.dumps(name)}]={json.dumps(text)};\n")


def built_in(side: int) -> list[dict]:
    """What there is to begin with: both episodes of the pages' query, two other drawn ones, and photographs.

    Returns:
        For each its name, attribution, and the addresses of the pictures that the page shows.
    """
    drawn, taken = load_benchmark("emoji", size=side), photographs()
    tests = test_episodes(drawn, fold=0, shot=5)
    episodes = [(drawn, episode) for episode in (*thread(drawn), *(tests[place] for place in PLACES))]
    episodes += [(taken, bowls(shot=1)), (taken, episode_of("pizza"))]
    shown = []
    for benchmark, episode in episodes:
        query, support = (benchmark.read(name, episode.class_id) for name in (episode.query, episode.supports[0]))
        pictures = {"support": support.image, "mask": support.mask.astype(np.uint8) * 255, "query": query.image}
        if benchmark is taken:  # a photograph as PNG is large
            addresses = {what: picture_address(picture) for what, picture in pictures.items()}
        else:
            addresses = {what: png_address(picture) for what, picture in pictures.items()}
        name = benchmark.class_names[episode.class_id] + ", a photograph" * (benchmark is taken)
        shown.append(
            {"name": name, "attribution": PHOTOGRAPHERS if benchmark is taken else drawn.attribution} | addresses
        )
    return shown


def picture_address(picture: np.ndarray) -> str:
    """A data address: JPEG of a photograph (h, w, 3), PNG of a mask (h, w)."""
    if picture.ndim == 2:
        return png_address(picture)
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(content.getvalue()).decode()


def write_episodes(out: Path, model: HSNet) -> None:
    """Write what is built in as a script, with the weights' size, thresholds and prior."""
    content = {
        "side": model.training_size,
        "thresholds": model.thresholds,
        "prior": model.prior,
        "episodes": built_in(model.training_size),
    }
    (out / "episodes.js").write_text(f"globalThis.hsnetEpisodes={json.dumps(content)};\n")


def write(run: str, out: Path, precision: str = "float16") -> None:
    """Write everything. Raises as `HSNet.from_run`, `make_graphs` and `runtime` do."""
    out.mkdir(parents=True, exist_ok=True)
    model = HSNet.from_run(run)
    with tempfile.TemporaryDirectory() as scratch:
        for name in write_graphs(make_graphs(model), Path(scratch), precision):
            write_script(out, name, Path(scratch, name).read_bytes())
    write_episodes(out, model)
    write_runtime(fetch_npm(PACKAGE, SHA256, data_folder() / "browser"), out)


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        prog="PYTHONPATH=book python -m kit.browser",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    option = parser.add_argument
    option("run", nargs="?", default=DEFAULT_RUN, help=f"trained run, by name or folder (default: {DEFAULT_RUN})")
    option("--out", type=Path, required=True, help="folder to write into")
    option("--precision", default="float16", help="of the weights, see hsnet.export (default: float16)")
    arguments = parser.parse_args()
    write(arguments.run, arguments.out, arguments.precision)
    print(f"written to {arguments.out}")


if __name__ == "__main__":
    run_program(main)
