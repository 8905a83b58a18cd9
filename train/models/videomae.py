"""VideoMAE checkpoints in both public layouts: the original repository's and Hugging Face ``transformers``'.

Both are renamed to the names of ``MaskedAutoencoder`` (whose encoder is a ``TubeletViT``), with queries, keys and
values fused and the absent key bias zero, which softmax cannot see. Tong et al. 2022, arXiv:2203.12602.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from toolkit.errors import UserError
from toolkit.recipe import TeacherConfig
from train.models.hub import locate, read_settings, read_weights
from train.models.vit import TubeletViT
from train.objectives.masked import MaskedAutoencoder

__all__ = ["Checkpoint", "is_videomae", "load_classifier", "load_pretraining", "read_videomae"]

_RENAMES = tuple((re.compile(pattern), new) for pattern, new in (
    # transformers
    (r"^(videomae\.)?embeddings\.patch_embeddings\.projection\.", "encoder.patch_embed."),
    (r"^(videomae\.)?encoder\.layer\.", "encoder.blocks."),
    (r"^(videomae\.)?layernorm\.", "encoder.norm."),
    (r"^classifier\.", "encoder.head."),
    (r"^decoder\.decoder_layers\.", "decoder."),
    (r"\.attention\.attention\.", ".qkv."),
    (r"\.attention\.output\.dense\.", ".proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.0."),
    (r"\.output\.dense\.", ".mlp.3."),
    # the original repository
    (r"^(encoder\.)?patch_embed\.proj\.", "encoder.patch_embed."),
    (r"^blocks\.", "encoder.blocks."),
    (r"^head\.", "encoder.head."),
    (r"^decoder\.blocks\.", "decoder."),
    (r"\.attn\.proj\.", ".proj."),
    (r"\.attn\.qkv\.", ".qkv."),
    (r"\.attn\.([qv]_bias)$", r".qkv.\1"),
    (r"\.mlp\.fc1\.", ".mlp.0."),
    (r"\.mlp\.fc2\.", ".mlp.3."),
    # both
    (r"^fc_norm\.", "encoder.norm."),
    (r"^encoder_to_decoder\.", "bridge."),
    (r"^mask_token$", "hidden_token"),
    (r"^decoder\.norm\.", "norm."),
    (r"^decoder\.head\.", "predict."),
))  # fmt: skip
#: What the names above begin with once they are renamed: anything else is no part of VideoMAE.
_PARTS = ("encoder.", "decoder.", "bridge.", "norm.", "predict.", "hidden_token")
#: Heads of the published sizes; the original layout does not store them.
_HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """weights: by the names of ``MaskedAutoencoder``; settings: ``config.json`` of ``transformers``, if it came along.

    norm: where the encoder's last norm stands, None if the file has none.
    """

    weights: dict[str, Tensor]
    settings: dict[str, Any]
    norm: str | None

    @property
    def encoder(self) -> dict[str, Tensor]:
        """The encoder's weights by the names of ``TubeletViT``."""
        return {n.removeprefix("encoder."): t for n, t in self.weights.items() if n.startswith("encoder.")}


def is_videomae(names: set[str]) -> bool:
    """Whether tensors of these names are a VideoMAE checkpoint in one of the two layouts."""
    theirs, original = "embeddings.patch_embeddings.projection.weight", "patch_embed.proj.weight"
    return any(name in names for name in (theirs, f"videomae.{theirs}", original, f"encoder.{original}"))


def read_videomae(source: str | Path) -> Checkpoint:
    """Read a file, folder or hub name.

    Raises:
        UserError: missing, damaged, no VideoMAE, or one with parts that this one does not have.
    """
    path = locate(source)
    raw = read_weights(path)
    if not is_videomae(set(raw)):
        example = sorted(raw)[0]
        raise UserError(f"weights {source} are no VideoMAE checkpoint (they begin with {example!r}): give another file")
    pooled = any(name.startswith("fc_norm.") for name in raw)
    tokens = any(re.match(r"((videomae\.)?layernorm|(encoder\.)?norm)\.", name) for name in raw)
    renamed = {_renamed(name): name for name in raw}
    if foreign := [name for new, name in renamed.items() if not new.startswith(_PARTS)]:
        raise UserError(f"weights {source} are no plain VideoMAE: {foreign[0]} has no place in it; give another file")
    weights = _fused({new: raw[name].float() for new, name in renamed.items()})
    if "bridge.weight" in weights:
        weights.setdefault("bridge.bias", torch.zeros(len(weights["bridge.weight"])))
    return Checkpoint(weights, read_settings(path), "pooled" if pooled else "tokens" if tokens else None)


def load_classifier(source: str | Path, heads: int | None = None, frames: int = 16, side: int = 224) -> TubeletViT:
    """A fine-tuned VideoMAE as it was trained; ``frames``, ``side`` and ``heads`` count where the file does not say.

    Raises:
        UserError: missing, damaged or foreign weights, or a checkpoint without a classifier.
    """
    checkpoint = read_videomae(source)
    head = checkpoint.encoder.get("head.weight")
    if head is None or checkpoint.norm != "pooled":
        raise UserError(f"weights {source} have no classifier over the mean of the tokens: fine-tune them first")
    model = _encoder(checkpoint, len(head), heads, frames, side, source)
    _fill(model, checkpoint.encoder, source)
    return model.eval()


def load_pretraining(
    source: str | Path, heads: int | None = None, decoder_heads: int | None = None, frames: int = 16, side: int = 224
) -> MaskedAutoencoder:
    """A pretraining checkpoint, decoder and all, as a ``MaskedAutoencoder`` with VideoMAE's loss.

    Raises:
        UserError: missing, damaged or foreign weights, or a checkpoint without a decoder.
    """
    checkpoint = read_videomae(source)
    weights, settings = checkpoint.weights, checkpoint.settings
    if "hidden_token" not in weights or "predict.weight" not in weights:
        raise UserError(f"weights {source} have no decoder: give a pretraining checkpoint")
    dim = weights["hidden_token"].shape[-1]
    model = MaskedAutoencoder(
        _encoder(checkpoint, 1, heads, frames, side, source), dim, _depth(weights, "decoder."),
        decoder_heads=decoder_heads or settings.get("decoder_num_attention_heads") or dim // 64,
        decoder_mlp_ratio=weights["decoder.0.mlp.0.weight"].shape[0] / dim,
        eps=settings.get("layer_norm_eps", 1e-6), last_eps=1e-5 if settings else 1e-6,
        target="channel" if settings.get("norm_pix_loss", True) else "pixels",
    )  # fmt: skip
    free = {"encoder.head.weight", "encoder.head.bias"}  # not part of pretraining
    if checkpoint.norm is None:
        free |= {"encoder.norm.weight", "encoder.norm.bias"}
    _fill(model, weights | {name: tensor for name, tensor in model.state_dict().items() if name in free}, source)
    return model.eval()


def _encoder(
    checkpoint: Checkpoint, classes: int, heads: int | None, frames: int, side: int, source: str | Path
) -> TubeletViT:
    """An encoder of the checkpoint's sizes with fresh weights."""
    weights, settings = checkpoint.encoder, checkpoint.settings
    embedding = weights["patch_embed.weight"]
    if embedding.ndim != 5 or "blocks.0.mlp.0.weight" not in weights:
        raise UserError(f"weights {source} are an incomplete VideoMAE checkpoint: get them again")
    dim = embedding.shape[0]
    size = settings.get("image_size", side)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    config = TeacherConfig(
        encoder="vit", dim=dim, depth=_depth(weights, "blocks."),
        heads=heads or settings.get("num_attention_heads") or _HEADS.get(dim, max(1, dim // 64)),
        mlp_ratio=weights["blocks.0.mlp.0.weight"].shape[0] / dim,
        tubelet=(embedding.shape[2], embedding.shape[3], embedding.shape[4]),
        norm="tokens" if checkpoint.norm == "tokens" else "pooled",
        eps=settings.get("layer_norm_eps", 1e-6),
        # transformers gives layer_norm_eps to the norm on tokens, and torch's default to fc_norm
        last_eps=settings["layer_norm_eps"] if settings and checkpoint.norm == "tokens" else 1e-5 if settings else 1e-6,
    )  # fmt: skip
    return TubeletViT(config, classes, (3, height, width), settings.get("num_frames", frames))


def _fill(model: nn.Module, weights: dict[str, Tensor], source: str | Path) -> None:
    own = model.state_dict()
    if extra := [name for name in weights if name not in own]:
        raise UserError(f"weights {source} are no plain VideoMAE: {extra[0]} has no place in it; give another file")
    for name in own:
        if name not in weights:
            raise UserError(f"weights {source} are an incomplete VideoMAE checkpoint: {name} is absent; get them again")
        if weights[name].shape != own[name].shape:
            shapes = f"{tuple(weights[name].shape)}, expected {tuple(own[name].shape)}"
            raise UserError(f"weights {source} do not fit together: {name} has shape {shapes}")
    model.load_state_dict({name: weights[name] for name in own})


def _renamed(name: str) -> str:
    for pattern, new in _RENAMES:
        name = pattern.sub(new, name)
    return name


def _fused(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values of every block as one layer; an absent bias is zero."""
    fused = {name: tensor for name, tensor in weights.items() if ".qkv." not in name}
    for stem in sorted({name.partition(".qkv.")[0] for name in weights if ".qkv." in name}):
        part = {n.removeprefix(f"{stem}.qkv."): t for n, t in weights.items() if n.startswith(f"{stem}.qkv.")}
        if "weight" in part:
            weight = part["weight"]
        elif {"query.weight", "key.weight", "value.weight"} <= set(part):
            weight = torch.cat([part["query.weight"], part["key.weight"], part["value.weight"]])
        else:
            continue
        zero = torch.zeros(len(weight) // 3)
        biases = [("q_bias", "query.bias"), ("k_bias", "key.bias"), ("v_bias", "value.bias")]
        bias = torch.cat([part.get(old, part.get(new, zero)) for old, new in biases])
        fused[f"{stem}.qkv.weight"], fused[f"{stem}.qkv.bias"] = weight, part.get("bias", bias)
    return fused


def _depth(weights: dict[str, Tensor], prefix: str) -> int:
    return 1 + max(int(n.removeprefix(prefix).split(".")[0]) for n in weights if re.match(re.escape(prefix) + r"\d", n))
