"""VideoMAE checkpoints against ``transformers``' own model, from both public layouts, and bad ones refused by name."""

import argparse
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from toolkit.recipe import TeacherConfig
from train.models.hub import read_weights
from train.models.pretrained import start_from
from train.models.registry import make_encoder
from train.models.videomae import load_classifier, load_pretraining

SMALL: dict[str, Any] = {
    "image_size": 32, "patch_size": 8, "num_frames": 4, "hidden_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "intermediate_size": 96, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 2, "decoder_intermediate_size": 64, "num_labels": 7,
}  # fmt: skip
BASE: dict[str, Any] = {"num_labels": 400}


def _scrambled(model: Any) -> Any:
    """Every weight random and large enough to matter, biases and norms too."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * (0.1 if parameter.ndim == 1 else 0.03))
    return model.eval()


def _classifier(**settings: Any) -> Any:
    return _scrambled(transformers.VideoMAEForVideoClassification(transformers.VideoMAEConfig(**settings)))


def _pretrainer(**settings: Any) -> Any:
    return _scrambled(transformers.VideoMAEForPreTraining(transformers.VideoMAEConfig(**settings)))


def _original(weights: dict[str, Tensor], pretraining: bool) -> dict[str, Tensor]:
    """The same weights in the original repository's layout: qkv in one, biases of q and v beside it."""
    here = "encoder." if pretraining else ""
    out: dict[str, Tensor] = {}

    def block(source: str, target: str) -> None:
        parts = [weights[f"{source}.attention.attention.{part}.weight"] for part in ("query", "key", "value")]
        out[f"{target}.attn.qkv.weight"] = torch.cat(parts)
        out[f"{target}.attn.q_bias"] = weights[f"{source}.attention.attention.query.bias"]
        out[f"{target}.attn.v_bias"] = weights[f"{source}.attention.attention.value.bias"]
        pairs = (("attention.output.dense", "attn.proj"), ("layernorm_before", "norm1"), ("layernorm_after", "norm2"),
                 ("intermediate.dense", "mlp.fc1"), ("output.dense", "mlp.fc2"))  # fmt: skip
        for theirs, ours in pairs:
            for kind in ("weight", "bias"):
                out[f"{target}.{ours}.{kind}"] = weights[f"{source}.{theirs}.{kind}"]

    for index in range(3):
        block(f"videomae.encoder.layer.{index}", f"{here}blocks.{index}")
    plain = {"videomae.embeddings.patch_embeddings.projection": f"{here}patch_embed.proj", "fc_norm": "fc_norm",
             "classifier": "head", "videomae.layernorm": "encoder.norm", "encoder_to_decoder": "encoder_to_decoder",
             "decoder.norm": "decoder.norm", "decoder.head": "decoder.head"}  # fmt: skip
    for theirs, ours in plain.items():
        for kind in ("weight", "bias"):
            if f"{theirs}.{kind}" in weights:
                out[f"{ours}.{kind}"] = weights[f"{theirs}.{kind}"]
    if pretraining:
        out["mask_token"] = weights["mask_token"]
        for index in range(2):
            block(f"decoder.decoder_layers.{index}", f"decoder.blocks.{index}")
    return out


def _clip(batch: int = 2, frames: int = 4, side: int = 32) -> Tensor:
    return torch.randn(batch, 3, frames, side, side, generator=torch.Generator().manual_seed(3))


def _mask(tokens: int, hidden: int) -> Tensor:
    """Another random half of the tubelets hidden in each clip."""
    order = torch.rand(2, tokens, generator=torch.Generator().manual_seed(4)).argsort(1)
    return torch.zeros(2, tokens, dtype=torch.bool).scatter_(1, order[:, :hidden], True)


def _assert_same_logits(theirs: Any, ours: torch.nn.Module, clip: Tensor) -> None:
    with torch.no_grad():
        want = theirs(clip.transpose(1, 2)).logits
        assert want.std() > 0.05
        torch.testing.assert_close(ours(clip), want, atol=1e-5, rtol=1e-5)


def _assert_same_loss(theirs: Any, ours: torch.nn.Module, clip: Tensor, mask: Tensor) -> None:
    with torch.no_grad():
        want = theirs(clip.transpose(1, 2), bool_masked_pos=mask).loss
        assert want > 0.05
        torch.testing.assert_close(ours(clip, mask), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize("settings", [{}, {"qv_bias": False}, {"layer_norm_eps": 1e-3}])
@pytest.mark.parametrize("safe", [True, False])
def test_a_transformers_classifier_gives_the_assert_same_logits(
    settings: dict[str, Any], safe: bool, tmp_path: Path
) -> None:
    theirs = _classifier(**SMALL, **settings)
    theirs.save_pretrained(tmp_path)
    if not safe:
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    _assert_same_logits(theirs, load_classifier(tmp_path), _clip())


def test_biases_of_queries_and_values_are_found_under_both_names(tmp_path: Path) -> None:
    theirs = _classifier(**SMALL)
    theirs.save_pretrained(tmp_path)  # the library writes q_bias and v_bias, and has query.bias in memory
    names = set(load_file(tmp_path / "model.safetensors"))
    assert names != set(theirs.state_dict())
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    _assert_same_logits(theirs, load_classifier(tmp_path), _clip())


@pytest.mark.parametrize("pooled", [True, False])
@pytest.mark.parametrize("normed", [True, False])
def test_a_transformers_pretrainer_gives_the_assert_same_loss(pooled: bool, normed: bool, tmp_path: Path) -> None:
    theirs = _pretrainer(**SMALL, use_mean_pooling=pooled, norm_pix_loss=normed)
    theirs.save_pretrained(tmp_path)
    _assert_same_loss(theirs, load_pretraining(tmp_path), _clip(), _mask(32, 24))


@pytest.mark.parametrize("wrapper", ["model", "module", None, "safetensors"])
def test_the_original_layout_gives_the_assert_same_logits(wrapper: str | None, tmp_path: Path) -> None:
    theirs = _classifier(**SMALL, layer_norm_eps=1e-6)
    theirs.fc_norm.eps = 1e-6  # the original's, everywhere
    weights = _original(theirs.state_dict(), pretraining=False)
    file = tmp_path / "checkpoint.pth"
    if wrapper == "safetensors":
        file = tmp_path / "checkpoint.safetensors"
        save_file(weights, file)
    else:
        settings = {"epoch": 3, "args": argparse.Namespace(lr=1e-3)}  # beside the weights, as the original does
        torch.save({wrapper: weights, **settings} if wrapper else weights, file)
    _assert_same_logits(theirs, load_classifier(file, heads=4, frames=4, side=32), _clip())


def test_the_original_pretraining_layout_gives_the_assert_same_loss(tmp_path: Path) -> None:
    theirs = _pretrainer(**SMALL, use_mean_pooling=False, layer_norm_eps=1e-6)
    theirs.decoder.norm.eps = 1e-6
    torch.save({"model": _original(theirs.state_dict(), pretraining=True)}, tmp_path / "checkpoint.pth")
    ours = load_pretraining(tmp_path / "checkpoint.pth", heads=4, decoder_heads=2, frames=4, side=32)
    _assert_same_loss(theirs, ours, _clip(), _mask(32, 24))


@pytest.mark.slow
def test_vit_b_gives_the_assert_same_logits_and_loss(tmp_path: Path) -> None:
    clip = _clip(1, 16, 224)
    theirs = _classifier(**BASE)
    theirs.save_pretrained(tmp_path / "classifier")
    _assert_same_logits(theirs, load_classifier(tmp_path / "classifier"), clip)
    del theirs
    pretrainer = _pretrainer(use_mean_pooling=False)
    pretrainer.save_pretrained(tmp_path / "pretrainer")
    _assert_same_loss(pretrainer, load_pretraining(tmp_path / "pretrainer"), clip, _mask(1568, 1408)[:1])


def _vit(**settings: Any) -> Any:
    shape = {"dim": 48, "depth": 3, "heads": 4, "mlp_ratio": 2.0, "tubelet": (2, 8, 8), **settings}
    return make_encoder(TeacherConfig(encoder="vit-s", **shape), 7, Preprocess(size=(32, 32)), 4).eval()


def test_fine_tuning_starts_from_either_kind_of_checkpoint(tmp_path: Path) -> None:
    _classifier(**SMALL).save_pretrained(tmp_path / "classifier")
    model = _vit(eps=1e-12, last_eps=1e-5)
    start_from(model, str(tmp_path / "classifier"))
    with torch.no_grad():
        assert torch.equal(model(_clip()), load_classifier(tmp_path / "classifier")(_clip()))
    _pretrainer(**SMALL, use_mean_pooling=False).save_pretrained(tmp_path / "pretrainer")
    whole = load_pretraining(tmp_path / "pretrainer").encoder.state_dict()
    for norm in ("tokens", "pooled"):
        model = _vit(norm=norm)
        start_from(model, str(tmp_path / "pretrainer"))
        state = model.state_dict()
        assert torch.equal(state["blocks.2.qkv.weight"], whole["blocks.2.qkv.weight"])
        assert torch.equal(state["norm.weight"], whole["norm.weight"]) == (norm == "tokens")


@pytest.mark.parametrize(
    ("frames", "side", "saved"), [(4, 32, "shards"), (8, 32, "half"), (4, 48, "pickle"), (2, 16, "wrapped")]
)
def test_however_it_was_saved_it_answers_for_clips_of_other_sizes_too(
    frames: int, side: int, saved: str, tmp_path: Path
) -> None:
    theirs = _classifier(**SMALL)
    if saved == "half":
        theirs = theirs.half()
    if saved == "wrapped":  # by a DataParallel
        torch.save({f"module.{name}": value for name, value in theirs.state_dict().items()}, tmp_path / "model.pth")
    else:
        theirs.save_pretrained(tmp_path, max_shard_size="40KB")
    if saved == "pickle":
        torch.save(read_weights(tmp_path), tmp_path / "pytorch_model.bin")
        for file in tmp_path.glob("model*"):
            file.unlink()
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (saved in ("shards", "half"))
    other = transformers.VideoMAEForVideoClassification(
        transformers.VideoMAEConfig(**{**SMALL, "num_frames": frames, "image_size": side})
    )
    other.load_state_dict(theirs.float().state_dict())
    shape = {"dim": 48, "depth": 3, "heads": 4, "mlp_ratio": 2.0, "tubelet": (2, 8, 8), "eps": 1e-12}
    ours = make_encoder(
        TeacherConfig(encoder="vit-s", last_eps=1e-5, **shape), 7, Preprocess(size=(side, side)), frames
    )
    start_from(ours, str(tmp_path / "model.pth" if saved == "wrapped" else tmp_path))
    _assert_same_logits(other.eval(), ours.eval(), _clip(2, frames, side))


def test_a_model_without_any_head_is_a_start_and_a_head_on_the_first_token_is_not_taken(tmp_path: Path) -> None:
    bare = _scrambled(transformers.VideoMAEModel(transformers.VideoMAEConfig(**SMALL, use_mean_pooling=False)))
    bare.save_pretrained(tmp_path / "bare")
    model = _vit(norm="tokens", eps=1e-12, last_eps=1e-12)
    start_from(model, str(tmp_path / "bare"))
    with torch.no_grad():
        want = bare(_clip().transpose(1, 2)).last_hidden_state
        torch.testing.assert_close(model.forward_features(_clip()), want, atol=1e-5, rtol=1e-5)
    first = _classifier(**SMALL, use_mean_pooling=False)
    first.save_pretrained(tmp_path / "first")
    start_from(model, str(tmp_path / "first"))
    assert torch.equal(model.blocks[2].mlp[3].bias, first.videomae.encoder.layer[2].output.dense.bias)
    assert not torch.equal(model.head.weight, first.classifier.weight)


@pytest.mark.parametrize("name", ["pos_embed", "cls_token", "blocks.0.gamma_1"])
def test_what_a_plain_videomae_does_not_have_is_refused_by_name(name: str, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.pth"
    torch.save({"model": {**_original(_classifier(**SMALL).state_dict(), False), name: torch.ones(1, 1, 48)}}, file)
    for load in (lambda: start_from(_vit(), str(file)), lambda: load_classifier(file, heads=4, frames=4, side=32)):
        with pytest.raises(UserError, match=rf"{name} has no place in it"):
            load()


def test_a_checkpoint_of_another_shape_names_the_first_weight_and_the_section(tmp_path: Path) -> None:
    _classifier(**SMALL).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"do not fit vit-s: patch_embed\.weight has shape .* check \[teacher\]"):
        start_from(_vit(tubelet=(2, 16, 16)), str(tmp_path))
    with pytest.raises(UserError, match=r"do not fit vit-s: blocks\.3\..* is absent"):
        start_from(_vit(depth=4), str(tmp_path))
    with pytest.raises(UserError, match=r"have 4 heads, teacher\.heads is 2: set it to 4"):
        start_from(_vit(heads=2), str(tmp_path))
    with pytest.raises(UserError, match=r"set teacher\.norm to 'pooled'"):
        start_from(_vit(norm="tokens"), str(tmp_path))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("cut", "are damaged"),
        ("empty", "are damaged or hold"),
        ("pickle", "more than tensors"),
        ("foreign", "are no VideoMAE checkpoint"),
        ("missing weight", r"incomplete VideoMAE checkpoint: blocks\.1\.proj\.weight is absent"),
        ("wrong shape", r"do not fit together: blocks\.1\.proj\.weight has shape \(3, 3\)"),
        ("no head", "have no classifier"),
        ("no weights", "holds no weights"),
        ("no tensors", "are damaged"),
        ("bad config", "config.json is damaged"),
    ],
)
def test_a_bad_checkpoint_is_one_clear_line(damage: str, message: str, tmp_path: Path) -> None:
    _classifier(**SMALL).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    path = tmp_path
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:2000])
    elif damage == "empty":
        path = tmp_path / "checkpoint.pth"
        path.write_bytes(b"")
    elif damage == "pickle":
        path = tmp_path / "checkpoint.pth"
        torch.save({"model": weights, "folder": Path("runs")}, path)
    elif damage == "no tensors":
        path = tmp_path / "checkpoint.pth"
        torch.save({"epoch": 3}, path)
    elif damage == "foreign":
        save_file({"conv1.weight": torch.zeros(3)}, file)
    elif damage == "missing weight":
        del weights["videomae.encoder.layer.1.attention.output.dense.weight"]
        save_file(weights, file)
    elif damage == "wrong shape":
        save_file({**weights, "videomae.encoder.layer.1.attention.output.dense.weight": torch.zeros(3, 3)}, file)
    elif damage == "no head":
        save_file({name: t for name, t in weights.items() if not name.startswith("classifier")}, file)
    elif damage == "no weights":
        file.unlink()
    else:
        (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=message) as refused:
        load_classifier(path)
    assert "\n" not in str(refused.value)
    with pytest.raises(UserError):
        load_pretraining(path)


@pytest.mark.parametrize("name", ["new.pth", "old.pth", "safe.safetensors"])
def test_no_damage_is_worse_than_a_user_error(name: str, tmp_path: Path) -> None:
    weights = {"patch_embed.proj.weight": torch.randn(4, 3, 2, 2, 2), "norm.bias": torch.randn(4)}
    file = tmp_path / name
    if name == "safe.safetensors":
        save_file(weights, file)
    else:
        torch.save({"model": weights}, file, _use_new_zipfile_serialization=name == "new.pth")
    whole, rng, refused = file.read_bytes(), random.Random(0), []
    for _ in range(150):
        damaged = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.4 else whole)
        for _ in range(rng.randint(1, 6)):
            if damaged:
                damaged[rng.randrange(min(len(damaged), 800))] = rng.randrange(256)
        file.write_bytes(damaged)
        try:
            read_weights(file)
        except UserError as error:
            refused.append(str(error))
    assert len(refused) > 75
    assert not any("\n" in message for message in refused)


def test_a_classifier_has_no_decoder_and_says_so(tmp_path: Path) -> None:
    _classifier(**SMALL).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="have no decoder: give a pretraining checkpoint"):
        load_pretraining(tmp_path)


def test_a_name_that_is_nowhere_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"weights no-such-owner/no-such-model are no local file or folder and the hub"):
        load_classifier("no-such-owner/no-such-model")
    with pytest.raises(UserError, match=r"weights no/such/file\.pth do not exist"):
        load_classifier("no/such/file.pth")


def test_settings_beside_another_file_are_not_taken_for_its_own(tmp_path: Path) -> None:
    theirs = _classifier(**SMALL, layer_norm_eps=1e-6)
    theirs.fc_norm.eps = 1e-6
    torch.save({"model": _original(theirs.state_dict(), pretraining=False)}, tmp_path / "checkpoint.pth")
    (tmp_path / "config.json").write_text(json.dumps({"image_size": 64, "num_attention_heads": 3}))
    _assert_same_logits(theirs, load_classifier(tmp_path / "checkpoint.pth", heads=4, frames=4, side=32), _clip())
