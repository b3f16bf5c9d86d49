"""Does the support decide? Test queries with supports of another of their objects: `PYTHONPATH=book python -m kit.controls RUN`.

The run's benchmark is one whose scenes are drawn: emoji or shapes. Written: `controls.json` in the run's folder.
"""

import sys
from dataclasses import replace
from pathlib import Path

from hsnet import Config, HSNet, test_episodes
from hsnet.benchmarks.drawn import DrawnBenchmark
from hsnet.config import run_program
from hsnet.devices import choose_device, choose_precision
from hsnet.engine import evaluate_run, predictor
from hsnet.runs import run_folder, scores_table, write_json

from .pages import other_episodes


def control_run(model: HSNet, config: Config, benchmark: DrawnBenchmark, folder: Path) -> dict:
    """Predict test queries from supports of their other objects, and score the masks against these and against the original ones.

    "another object" is scored against the support's object: it should be as high as the test score. "wrong
    support" scores the same masks against the episode's own target: it must collapse. Writes `controls.json`.
    """
    device = choose_device(config.device)
    predict = predictor(model.to(device).eval(), device, choose_precision(config.precision, device))
    episodes = test_episodes(benchmark, fold=config.fold, shot=1, count=config.test_episodes)
    pairs = [(other, episode) for episode in episodes for other in other_episodes(benchmark, episode)]
    masks = []

    def another(batch):
        masks.append(predict(batch)["HSNet"])
        return {"another object": masks[-1]}

    scores = evaluate_run(another, config, benchmark, [other for other, _ in pairs], "controls")
    # Of the episode itself only the query's truth is needed: its query stands in for the supports.
    targets = [replace(episode, supports=(episode.query,)) for _, episode in pairs]
    scores |= evaluate_run(lambda _: {"wrong support": masks.pop(0)}, config, benchmark, targets, "controls")
    result = {
        **{name: getattr(config, name) for name in ("benchmark", "fold", "size")},
        "shot": 1,
        "digest": benchmark.digest(),
        "scores": {name: score.summary() for name, score in scores.items()},
    }
    write_json(folder / "controls.json", result)
    return result


def main() -> None:
    """The program."""
    folder = run_folder(sys.argv[1])
    config = Config.load(folder / "config.json")
    print(scores_table([control_run(HSNet.from_run(folder), config, config.load_benchmark(), folder)]))


if __name__ == "__main__":
    run_program(main)
