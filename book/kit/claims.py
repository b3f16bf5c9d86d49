"""What the claims of chapter 13 need beyond tests, measured on the published network: `PYTHONPATH=book python -m kit.claims`.

Each measurement writes one file into the run's folder; what is there is kept.
"""

from collections.abc import Callable
from copy import copy
from functools import partial

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from hsnet import HSNet, test_episodes, vote
from hsnet.benchmarks.drawn import DrawnBenchmark
from hsnet.benchmarks.emoji import Emoji
from hsnet.benchmarks.scenes import Scene
from hsnet.config import Config, run_program
from hsnet.devices import choose_device, choose_precision, computing_in
from hsnet.engine import evaluate_run, features_of, fit_prototypes, predictor
from hsnet.reproduce.claims import BACKGROUNDS, RULES, SHOTS, published
from hsnet.reproduce.experiments import CLAIMS_FOLDS
from hsnet.runs import write_json

EPISODES = 300


def on_other_backgrounds(benchmark: DrawnBenchmark) -> DrawnBenchmark:
    """The benchmark with backgrounds of a kind that training never shows: stripes and chequers of two colours.

    Objects and masks of its scenes are the same.
    """
    other = copy(benchmark)
    other.scene = partial(_on_pattern, benchmark)
    return other


def _on_pattern(benchmark: DrawnBenchmark, name: str) -> Scene:
    scene, size = benchmark.scene(name), benchmark.size
    rng = np.random.default_rng([2, int(name.rsplit(".", 1)[-1])])
    y, x = np.mgrid[:size, :size] / size
    angle, period = rng.uniform(0, np.pi), rng.uniform(0.04, 0.2)
    first = np.floor((x * np.cos(angle) + y * np.sin(angle)) / period)
    second = np.floor((y * np.cos(angle) - x * np.sin(angle)) / period) if rng.random() < 0.5 else 0
    colours = rng.integers(0, 256, (2, 3), dtype=np.uint8)
    pattern = colours[((first + second) % 2).astype(int)]
    # Soft edges, as drawings have.
    objects = Image.fromarray(np.where(scene.labels > 0, 255, 0).astype(np.uint8))
    half = objects.resize((size // 2,) * 2, Image.Resampling.BOX)
    share = np.asarray(half.resize(objects.size, Image.Resampling.BILINEAR))
    share = np.where(scene.labels > 0, 255, share // 2).astype(np.float32)[..., None] / 255
    return Scene((share * scene.image + (1 - share) * pattern).astype(np.uint8), scene.labels)


def measure_shots(model: HSNet, config: Config, benchmark: DrawnBenchmark) -> dict:
    """The same queries with the first K of ten supports each, for each K and vote rule."""
    device = choose_device(config.device)
    dtype = choose_precision(config.precision, device)

    @torch.no_grad()
    def predict(batch):
        batch = batch.to(device)
        with computing_in(dtype, device):
            logits = model.logits_from_features(
                *features_of(model, batch), batch.support_mask, batch.query_mask.shape[-2:]
            )
            masks = torch.stack([one[:, 1] > one[:, 0] for one in logits], dim=1)
        return {f"{k} {rule}": vote(masks[:, :k], rule).cpu() for k in SHOTS for rule in RULES}

    scores = _scores(predict, config, benchmark, max(SHOTS))
    rows = [_row(scores[f"{k} {rule}"], shot=k, rule=rule) for k in SHOTS for rule in RULES]
    return {"digest": benchmark.digest(), "scores": rows}


def measure_backgrounds(model: HSNet, config: Config, benchmark: DrawnBenchmark) -> dict:
    """The first test episodes as they are, and on backgrounds of another kind: the network and the prototypes."""
    device = choose_device(config.device)
    prototypes = fit_prototypes(model, config, benchmark, device)
    predict = predictor(model, device, choose_precision(config.precision, device), prototypes)
    rows = []
    for name, drawn in zip(BACKGROUNDS, (benchmark, on_other_backgrounds(benchmark)), strict=True):
        scores = _scores(predict, config, drawn, shot=1)
        rows += [_row(score, backgrounds=name, who=who) for who, score in scores.items()]
    return {"digest": benchmark.digest(), "scores": rows}


def measure_episodes(model: HSNet, config: Config, benchmark: DrawnBenchmark) -> dict:
    """What each test episode is like: the target's share of the query, the number of distractors, who drew the query."""
    episodes = test_episodes(benchmark, fold=config.fold, shot=1, count=config.test_episodes)
    rows = []
    for episode in tqdm(episodes, desc="test scenes", unit="scene", leave=False):
        share = float(benchmark.read(episode.query, episode.class_id).mask.mean())
        objects = benchmark.objects(episode.query)
        rows.append([round(share, 5), len(objects) - 1, objects[0][1]])
    return {"digest": benchmark.digest(), "columns": ["share", "distractors", "artist"], "episodes": rows}


MEASUREMENTS: dict[str, Callable[[HSNet, Config, DrawnBenchmark], dict]] = {
    "episodes.json": measure_episodes,
    "shots.json": measure_shots,
    "backgrounds.json": measure_backgrounds,
}


def _scores(predict, config, benchmark, shot):
    episodes = test_episodes(benchmark, fold=config.fold, shot=shot, count=EPISODES)
    return evaluate_run(predict, config, benchmark, episodes, "measuring")


def _row(score, **which):
    return {**which, **score.summary(), "areas": score.rows}


def main() -> None:
    """The program."""
    for run in map(published, CLAIMS_FOLDS):
        config = Config.load(run.folder / "config.json")
        for name in (name for name in MEASUREMENTS if not (run.folder / name).exists()):
            model = HSNet.from_run(run.folder).to(choose_device(config.device))
            write_json(run.folder / name, MEASUREMENTS[name](model, config, Emoji(config.size)))
            print(f"written to {run.folder / name}")


if __name__ == "__main__":
    run_program(main)
