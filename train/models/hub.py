"""Finding and reading weights that others made: a file, a folder, or a name on the Hugging Face hub.

Safetensors are preferred; a pickled checkpoint is read with ``weights_only=True`` only, so that it cannot run code.
"""

import argparse
import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from toolkit.errors import MissingDependency, UserError

__all__ = ["locate", "read_settings", "read_weights"]

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SAFE, _PICKLED = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_WANTED = ["*.json", "*.safetensors"]
_LOGIN = "log in with  hf auth login  or HF_TOKEN"
_BY_HAND = "download the folder and give its path"


def locate(source: str | Path) -> Path:
    """The local path of ``source``: itself if it exists, else a snapshot of that name from the hub (cached).

    The hub's own variables hold: HF_HOME (where the cache is), HF_HUB_OFFLINE, HF_TOKEN, HF_ENDPOINT.

    Raises:
        UserError: it is neither on the disk nor to be had from the hub.
        MissingDependency: a hub name without ``huggingface_hub``.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    name = str(source)
    if not _HUB_NAME.fullmatch(name):
        raise UserError(f"weights {name} do not exist: give a file, a folder, or a hub name such as owner/model")
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise MissingDependency("huggingface_hub", "transformers") from error
    try:
        folder = Path(snapshot_download(name, allow_patterns=_WANTED))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(name, allow_patterns=["*.json", "pytorch_model*.bin"]))
    except Exception as error:  # those of its HTTP library too, which is another one in another version
        raise UserError(f"weights {name} are no local file or folder and the hub {_why(name, error)}") from error
    return folder


def _why(name: str, error: Exception) -> str:
    """What the hub's client could not do, and what to do, as the end of a sentence about the hub."""
    from huggingface_hub import constants, errors

    if isinstance(error, errors.GatedRepoError):
        return f"gives them to those alone who accept terms: do so at {constants.ENDPOINT}/{name}, and {_LOGIN}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"shows no such model: check the name; if it is private, {_LOGIN}"
    if constants.HF_HUB_OFFLINE and isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        return f"is not asked, since HF_HUB_OFFLINE is set: unset it, or {_BY_HAND}"
    reason = _first_line(error.__cause__ if isinstance(error.__cause__, Exception) else error)
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f"at {constants.ENDPOINT} does not answer ({reason}): check the connection, or {_BY_HAND}"
    return f"does not give them ({reason}): try again, or {_BY_HAND}"


def read_settings(path: Path) -> dict[str, Any]:
    """The ``config.json`` of a ``transformers`` folder; empty for a bare weights file.

    Raises:
        UserError: it is damaged.
    """
    file = (path if path.is_dir() else path.parent) / "config.json"
    if not file.is_file() or (path.is_file() and path.name not in (*_SAFE, *_PICKLED)):
        return {}
    try:
        settings = json.loads(file.read_bytes())
    except ValueError as error:
        raise UserError(f"{file} is damaged ({error}): get it again") from error
    return settings if isinstance(settings, dict) else {}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of a weights file, or of a folder that holds one (shards are joined).

    Raises:
        UserError: no weights there, damaged, or a pickle with more than weights in it.
    """
    if path.is_dir():
        found = next((path / name for name in (*_SAFE, *_PICKLED) if (path / name).is_file()), None)
        if found is None:
            raise UserError(
                f"folder {path} holds no weights ({_SAFE[0]} or {_PICKLED[0]}): give the folder of a saved model"
            )
        path = found
    try:
        if path.name.endswith(".index.json"):
            shards = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
            return {name: tensor for shard in shards for name, tensor in _read(path.parent / shard).items()}
        return _read(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise UserError(f"weights {path} are damaged ({_first_line(error)}): get them again") from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _read(path: Path) -> dict[str, Tensor]:
    raw = load_file(path) if path.suffix == ".safetensors" else _unpickled(path)
    for wrapper in ("model", "module", "state_dict", "model_state"):
        if isinstance(raw, dict) and isinstance(raw.get(wrapper), dict):
            raw = raw[wrapper]
            break
    items = raw.items() if isinstance(raw, dict) else ()
    tensors = {str(name): value for name, value in items if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError("no tensors in it")
    if all(name.startswith("module.") for name in tensors):  # saved from within DataParallel
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return tensors


def _unpickled(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):  # settings beside the weights, as VideoMAE saves
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except (
        Exception
    ) as error:  # a damaged pickle makes torch 2.13 raise almost anything, IndexError and AssertionError too
        raise UserError(
            f"weights {path} are damaged or hold more than tensors, which is not loaded for safety: "
            "get them again, or save them as safetensors"
        ) from error
