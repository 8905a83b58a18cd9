"""Self-supervised objectives, one file each, each citing its paper; a mixture of them trains one encoder."""

from train.objectives.mixture import Mixture
from train.objectives.registry import OBJECTIVES, applying, resolve

__all__ = ["OBJECTIVES", "Mixture", "applying", "resolve"]
