"""The one training loop: on a CPU, one GPU or many processes; a killed run continues exactly.

Every random draw is a function of (seed, step, part of the batch) alone, and a checkpoint holds weights, optimiser
state and step in one safetensors file that is replaced atomically.
"""

from train.loop.engine import fit
from train.loop.plan import BatchLoss, Fit, Plan
from train.loop.schedule import rate, seeded
from train.loop.world import is_main, main_first, wait_for_all

__all__ = ["BatchLoss", "Fit", "Plan", "fit", "is_main", "main_first", "rate", "seeded", "wait_for_all"]
