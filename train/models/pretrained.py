"""Starting an encoder from weights that exist: VideoMAE's, GoogLeNet's, torchvision's, pytorchvideo's, or our own."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from toolkit.errors import UserError
from train.models.hub import locate, read_weights
from train.models.i3d import I3D, inflate
from train.models.store import ClipModel, Model, load_model
from train.models.videomae import is_videomae, read_videomae
from train.models.vit import TubeletViT
from train.models.x3d import X3D, published_name

__all__ = ["copy_encoder", "start_from"]


def start_from(model: ClipModel, source: str | None) -> None:
    """Fill ``model`` with pretrained weights in place; the head is taken only if it has as many classes.

    ``source`` is a file, a folder or a hub name: a model saved by vidon, VideoMAE in either public layout (ViTs),
    torchvision's GoogLeNet (I3D, inflated), pytorchvideo's X3D, or any state dict with the model's own names. None
    changes nothing.

    Raises:
        UserError: missing, damaged or foreign weights, weights of another shape, or more than the model has places for.
    """
    if source is None:
        return
    path = locate(source)
    if (path / "model.json").is_file():
        loaded = load_model(path)
        _same_heads(model, getattr(loaded.model, "config", None), source)
        _fill(model, loaded.model.state_dict(), source)
        return
    weights = read_weights(path)
    if isinstance(model, TubeletViT) and is_videomae(set(weights)):
        checkpoint = read_videomae(path)
        _refuse_heads(model, checkpoint.settings.get("num_attention_heads", model.config.heads), source)
        if checkpoint.norm == "pooled" and model.config.norm == "tokens":
            raise UserError(f"weights {source} normalise the mean of the tokens: set teacher.norm to 'pooled'")
        encoder = checkpoint.encoder
        if checkpoint.norm != model.config.norm:  # the norm on tokens is dropped in fine-tuning, as VideoMAE does
            encoder = {name: tensor for name, tensor in encoder.items() if not name.startswith("norm.")}
        if checkpoint.norm == "tokens":  # a classifier that came along looked at the first token, not at the mean
            encoder = {name: tensor for name, tensor in encoder.items() if not name.startswith("head.")}
        _fill(model, encoder, source, fresh=("norm.",))
    elif isinstance(model, I3D) and weights.get("conv1.conv.weight", next(iter(weights.values()))).ndim == 4:
        inflate(model, weights)
    elif isinstance(model, X3D) and any(name.startswith("blocks.") for name in weights):
        _fill(model, weights, source, called=published_name)
    else:
        _fill(model, {_own_name(name): tensor for name, tensor in weights.items()}, source)


def copy_encoder(model: ClipModel, start: Model, source: str) -> None:
    """Fill ``model`` with all of a saved encoder but its head.

    Raises:
        UserError: it is another encoder, or of another shape.
    """
    _same_heads(model, getattr(start, "config", None), source)
    weights = {name: tensor for name, tensor in start.state_dict().items() if not name.startswith("head.")}
    _fill(model, weights, source)


def _same_heads(model: ClipModel, saved: Any, source: str) -> None:
    """Heads leave no trace in the shapes."""
    if isinstance(model, TubeletViT):
        _refuse_heads(model, getattr(saved, "heads", model.config.heads), source)


def _refuse_heads(model: TubeletViT, heads: int, source: str) -> None:
    if heads != model.config.heads:
        raise UserError(
            f"weights {source} have {heads} heads, teacher.heads is {model.config.heads}: set it to {heads}"
        )


def _own_name(name: str) -> str:
    return f"head.{name.removeprefix('fc.')}" if name.startswith("fc.") else name


def _fill(
    model: ClipModel, weights: dict[str, Tensor], source: str, fresh: tuple[str, ...] = (),
    called: Callable[[str], str] = str,
) -> None:  # fmt: skip
    """Take all but the ``head``, the ``fresh`` and batch norms' counters; ``called`` gives a weight's name in there."""
    own = model.state_dict()
    wrong = []
    for name, tensor in own.items():
        given = weights.get(called(name))
        if given is not None and given.shape == tensor.shape:
            own[name] = given
        elif not name.startswith(("head.", *fresh)) and not name.endswith("num_batches_tracked"):
            what = "is absent" if given is None else f"has shape {tuple(given.shape)}, expected {tuple(tensor.shape)}"
            wrong.append(f"{called(name)} {what}")
    known = {called(name) for name in own}
    wrong += [f"{name} has no place in it" for name in weights if name not in known]
    if wrong:
        more = f" (and {len(wrong) - 1} more weights do not fit)" if len(wrong) > 1 else ""
        raise UserError(f"weights {source} do not fit {model.config.encoder}: {wrong[0]}{more}; check [teacher]")
    model.load_state_dict(own)
