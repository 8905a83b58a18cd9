"""Which objectives there are. Listing them imports none; adding one is one file and one line here.

Each module holds ``Config`` (frozen settings), ``build(encoder, config, clip)`` and ``unfit(encoder)`` (why the
objective does not apply to an encoder, or None). What is built has ``views``, the clips of each video that it
wants, and is called with clips (B, V, C, T, H, W), a generator and the batch; it returns named scalars, of which
"loss" is minimised and the others are logged.
"""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ValidationError
from torch import nn

from toolkit.errors import UserError, nearest
from train.objectives.features import Encoder

__all__ = ["OBJECTIVES", "applying", "build_objective", "resolve"]

OBJECTIVES = {
    "adversarial": "train.objectives.adversarial",
    "attributes": "train.objectives.attributes",
    "autoencoder": "train.objectives.autoencoder",
    "contrastive": "train.objectives.contrastive",
    "masked": "train.objectives.masked",
}


def _module(name: str) -> ModuleType:
    return importlib.import_module(OBJECTIVES[name])


def resolve(weights: Mapping[str, float], settings: Mapping[str, Mapping[str, Any]]) -> dict[str, BaseModel]:
    """The settings of every objective with a weight, defaults filled in.

    Raises:
        UserError: no or an unknown objective, a weight that is not positive, an unknown or bad setting.
    """
    if not weights:
        raise UserError(f"pretrain.objectives is empty: give weights to some of {', '.join(OBJECTIVES)}")
    for name in (*weights, *settings):
        if name not in OBJECTIVES:
            hint = nearest(name, OBJECTIVES)
            raise UserError(f"unknown objective {name!r}{hint}; there are: {', '.join(OBJECTIVES)}")
    for name, weight in weights.items():
        if not weight > 0:
            raise UserError(f"pretrain.objectives.{name} = {weight}: a weight is above 0; leave the objective out")
    for name in settings:
        if name not in weights:
            raise UserError(f"pretrain.settings.{name}: this objective has no weight in pretrain.objectives")
    return {name: _settled(name, settings.get(name, {})) for name in weights}


def _settled(name: str, settings: Mapping[str, Any]) -> BaseModel:
    config: type[BaseModel] = _module(name).Config
    try:
        return config.model_validate(dict(settings))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        where = f"pretrain.settings.{name}" + (f".{key}" if key else "")
        if first["type"] != "extra_forbidden":
            raise UserError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from error
        fields = list(config.model_fields)
        raise UserError(f"{where}: unknown key{nearest(key, fields)}; valid keys: {', '.join(fields)}") from error


def applying(encoder: Encoder) -> list[str]:
    """The names of the objectives that an encoder can be trained with."""
    return [name for name in OBJECTIVES if _module(name).unfit(encoder) is None]


def build_objective(name: str, encoder: Encoder, config: BaseModel, clip: tuple[int, int, int, int]) -> nn.Module:
    """One objective over clips of shape (C, T, H, W).

    Raises:
        UserError: the objective does not apply to this encoder; those that do are named.
    """
    module = _module(name)
    reason = module.unfit(encoder)
    if reason is not None:
        kind = type(encoder).__name__
        raise UserError(f"objective {name!r} does not apply to {kind}: {reason}; use {', '.join(applying(encoder))}")
    objective: nn.Module = module.build(encoder, config, clip)
    return objective
