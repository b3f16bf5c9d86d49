"""HSNet: Hypercorrelation Squeeze for Few-Shot Segmentation, to be read, trained and used."""

from .backbone import Backbone
from .benchmarks import BENCHMARKS
from .config import Config, paper
from .conv4d import CenterPivotConv4d, DenseConv4d, SeparableConv4d
from .correlation import correlate, hypercorrelation_pyramid, mask_features
from .episodes import Batch, Episode, EpisodeDataset, test_episodes
from .metrics import SegmentationScore
from .model import HSNet, vote
from .segmenter import Segmenter

__all__ = [
    "BENCHMARKS",
    "Backbone",
    "Batch",
    "CenterPivotConv4d",
    "Config",
    "DenseConv4d",
    "Episode",
    "EpisodeDataset",
    "HSNet",
    "SegmentationScore",
    "Segmenter",
    "SeparableConv4d",
    "correlate",
    "hypercorrelation_pyramid",
    "mask_features",
    "paper",
    "test_episodes",
    "vote",
]
