"""Whether an exported run answers as PyTorch does: every precision of the weights, on test episodes of its benchmark.

PYTHONPATH=book python -m kit.exported RUN [EPISODES]    written: export.json in the run's folder
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hsnet import EpisodeDataset, HSNet, test_episodes
from hsnet.config import Config, run_program
from hsnet.engine import evaluate
from hsnet.export import OPSET, PRECISIONS, make_graphs, write_graphs
from hsnet.runs import markdown, run_folder, write_json


def load(folder: Path) -> Callable[[Tensor, Tensor, Tensor], Float[np.ndarray, "s s"]]:
    """Run exported graphs with onnxruntime, on the CPU.

    Returns:
        A function of a query (3, s, s), a support (3, s, s), both uint8, and the support's mask (s, s), to probabilities.
    """
    import onnxruntime as runtime  # here, since the table needs none

    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    features, match = (
        runtime.InferenceSession(folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
        for name in ("features", "match")
    )

    def predict(query, support, mask):
        inputs = {"mask": mask[None].float().numpy()}
        for name, picture in (("query", query), ("support", support)):
            found = features.run(None, {"picture": picture[None].numpy()})
            inputs |= {f"{name}-{i}": feature for i, feature in enumerate(found)}
        return match.run(None, inputs)[0]

    return predict


def check(model: HSNet, config: Config, count: int) -> dict:
    """Compare every precision with PyTorch on the first 1-shot test episodes of the run's benchmark.

    Returns:
        Per precision the files' sizes, the share of pixels whose mask equals PyTorch's, and the mIoU.
    """
    benchmark = config.load_benchmark()
    episodes = test_episodes(benchmark, fold=config.fold, shot=1, count=config.test_episodes)[:count]
    equal: dict[str, list[float]] = {precision: [] for precision in PRECISIONS}
    with tempfile.TemporaryDirectory() as scratch:
        made, folders = make_graphs(model), {precision: Path(scratch, precision) for precision in PRECISIONS}
        sizes = {precision: write_graphs(made, folder, precision) for precision, folder in folders.items()}
        graphs = {precision: load(folder) for precision, folder in folders.items()}
    normalize = model.backbone.normalize

    def predict(batch):
        masks = {"PyTorch": model.predict(normalize(batch.query), normalize(batch.support), batch.support_mask)}
        for precision, run in graphs.items():
            found = run(batch.query[0], batch.support[0, 0], batch.support_mask[0, 0]) > 0.5
            masks[precision] = torch.tensor(found)[None]
            equal[precision].append((masks[precision] == masks["PyTorch"]).float().mean().item())
        return masks

    dataset, class_ids = EpisodeDataset(benchmark, config.size, episodes), benchmark.classes(config.fold, "test")
    scores = evaluate(predict, dataset, class_ids, batch=1, workers=0, title="comparing")
    return {
        "opset": OPSET,
        "size": config.size,
        "episodes": len(episodes),
        "digest": benchmark.digest(),
        "scores": {name: score.summary() for name, score in scores.items()},
        "bytes": sizes,
        "equal_pixels": {p: {"mean": float(np.mean(v)), "least": float(np.min(v))} for p, v in equal.items()},
    }


def table(result: dict) -> str:
    """Markdown: what each precision costs."""
    rows = []
    for name, score in result["scores"].items():
        low, high = score["interval"]
        cost = ["–", "–"]
        if name in result["bytes"]:
            size, equal = sum(result["bytes"][name].values()), result["equal_pixels"][name]["mean"]
            cost = [f"{size / 1e6:.1f} MB", f"{100 * equal:.3f} %"]
        rows.append([name, *cost, f"{score['miou']:.2f} [{low:.1f}, {high:.1f}]"])
    header = ["weights", "size", "pixels as in PyTorch", f"mIoU [95 %], {result['episodes']} episodes"]
    return markdown(header, rows)


def main() -> None:
    """The program; its arguments are a run and a number of episodes."""
    folder, count = run_folder(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200
    result = check(HSNet.from_run(folder), Config.load(folder / "config.json"), count)
    write_json(folder / "export.json", result)
    print(f"{table(result)}\nwritten to {folder / 'export.json'}")


if __name__ == "__main__":
    run_program(main)
