"""The picture of the README: four test episodes of the book's network, chosen by rank alone.

PYTHONPATH=book python -m kit.examples
"""

import matplotlib.pyplot as plt
import numpy as np
import torch

from hsnet import EpisodeDataset, HSNet, test_episodes
from hsnet.config import run_program
from hsnet.episodes import Batch
from hsnet.figures import episode_figure
from hsnet.runs import run_folder

from .pages import RUN, SIZE, emoji, run_score

PERCENTILES = 10, 40, 60, 90  # of the IoU among the test episodes, from low to high


def chosen() -> list[int]:
    """The places of the episodes at `PERCENTILES` in the run's test list."""
    areas = np.array(run_score(RUN).rows)  # class, then background and foreground: intersection, union
    order = np.argsort(areas[:, 2] / areas[:, 4], kind="stable")
    return [int(order[len(order) * percentile // 100]) for percentile in PERCENTILES]


@torch.no_grad()
def picture() -> plt.Figure:
    """Support, query, truth and prediction of each, above the names of the artists."""
    benchmark, model = emoji(), HSNet.from_run(RUN)
    every = test_episodes(benchmark, fold=0, shot=1)
    dataset = EpisodeDataset(benchmark, SIZE, [every[i] for i in chosen()])
    batch = Batch.stack([dataset[i] for i in range(len(PERCENTILES))])
    normalize = model.backbone.normalize
    masks = model.predict(normalize(batch.query), normalize(batch.support), batch.support_mask).numpy()
    figure = episode_figure(batch, masks, [benchmark.class_names[c] for c in batch.class_id.tolist()])
    figure.tight_layout(rect=(0, 0.055, 1, 1))
    middle = benchmark.attribution.index(", ", len(benchmark.attribution) // 2) + 1
    footer = benchmark.attribution[:middle] + "\n" + benchmark.attribution[middle:].strip()
    figure.text(0.5, 0.008, footer, ha="center", va="bottom", fontsize=8, color="black", linespacing=1.5)
    return figure


def main() -> None:
    """The program."""
    file = run_folder(RUN) / "percentiles.png"
    picture().savefig(file, dpi=100)
    print(f"written to {file}")


if __name__ == "__main__":
    run_program(main)
