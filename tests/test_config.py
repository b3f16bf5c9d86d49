"""Settings: the paper's, and how they reach the benchmark."""

from dataclasses import fields

import pytest

from hsnet import Config, paper
from hsnet.benchmarks import load_benchmark
from hsnet.model import VOTE_RULES


def test_the_papers_settings():
    config = paper("pascal", "resnet101", 3)
    assert (config.epochs, config.patience, config.precision, config.batch) == (2000, 100, "float32", 20)
    assert (config.protocol, config.novel_images) == ("official", "keep")
    assert (config.boundary, config.rule) == ("background", "paper")
    assert (config.optimizer, config.learning_rate, config.schedule, config.size) == ("adam", 1e-3, "constant", 400)
    assert (config.val_episodes, config.test_episodes, config.epoch_episodes) == (1000, 1000, 0)
    assert paper("coco").batch == 40
    assert paper("fss").test_episodes == paper("fss").val_episodes == 2400
    assert paper("pascal").run != Config(**{**vars(paper("pascal")), "protocol": "strict"}).run


def test_settings_reach_the_benchmark(datasets):
    config = Config(**{**vars(paper("pascal")), "protocol": "strict", "novel_images": "drop"})
    benchmark = config.load_benchmark()
    assert (benchmark.protocol, benchmark.novel_images) == ("strict", "drop")
    with pytest.raises(ValueError, match="protocol is 'mine': choose one of official, strict"):
        Config(protocol="mine")
    with pytest.raises(ValueError, match="fold is 1: fss has one split only, --fold 0"):
        load_benchmark("fss", size=64).classes(1, "test")
    assert next(f for f in fields(Config) if f.name == "rule").metadata["choices"] == (*VOTE_RULES, "mean")
