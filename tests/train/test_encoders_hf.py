"""Any video classifier of ``transformers`` as encoder and teacher: parity with its own pipeline, saving, training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.train.synthetic import tiny_recipe, write_data
from tests.train.test_encoders import layer_of
from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from toolkit.recipe import TeacherConfig
from train.data.clips import normalise
from train.macs import measure
from train.models import Card, load_model, save_model
from train.models.hf import open_classifier
from train.models.registry import Encoder, make_encoder
from train.models.store import load_teacher
from train.stages import distill, finetune

SIDE, FRAMES = 32, 4
_SHAPE: dict[str, Any] = {
    "image_size": SIDE, "num_frames": FRAMES, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 48, "id2label": {0: "right", 1: "left"}, "label2id": {"right": 0, "left": 1},
}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "videomae": lambda: transformers.VideoMAEConfig(**_SHAPE, patch_size=8),
    "timesformer": lambda: transformers.TimesformerConfig(**_SHAPE, patch_size=8),
    "vivit": lambda: transformers.VivitConfig(**_SHAPE, tubelet_size=[2, 8, 8]),
    "vjepa2": lambda: transformers.VJEPA2Config(
        crop_size=SIDE, frames_per_clip=FRAMES, patch_size=8, hidden_size=32, num_hidden_layers=2, num_pooler_layers=1,
        num_attention_heads=2, pred_hidden_size=32, pred_num_hidden_layers=1, pred_num_attention_heads=2,
        id2label=_SHAPE["id2label"], label2id=_SHAPE["label2id"],
    ),
}  # fmt: skip
PROCESSORS: dict[str, Any] = {
    "videomae": lambda: transformers.VideoMAEImageProcessor(size={"height": SIDE, "width": SIDE}, do_center_crop=False),
    "vivit": lambda: transformers.VivitImageProcessor(size={"height": SIDE, "width": SIDE}, do_center_crop=False),
}
PICTURES = Preprocess(size=(SIDE, SIDE), mean=(0.4, 0.5, 0.6), std=(0.3, 0.2, 0.1))


def _saved(kind: str, folder: Path) -> Any:
    """A small random classifier on the disk, with its processor where there is one."""
    torch.manual_seed(0)
    model = transformers.AutoModelForVideoClassification.from_config(CONFIGS[kind]())
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    if kind in PROCESSORS:
        PROCESSORS[kind]().save_pretrained(folder)
    return model.eval()


def _pixels(kind: str, videos: np.ndarray) -> torch.Tensor:
    """What the library itself makes of uint8 videos (B, T, H, W, 3): (B, T, 3, H, W)."""
    if kind in PROCESSORS:
        made = PROCESSORS[kind]()(
            [list(video) for video in videos], return_tensors="pt", input_data_format="channels_last"
        )
        return torch.as_tensor(made["pixel_values"]).float()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((torch.from_numpy(videos) / 255 - mean) / std).permute(0, 1, 4, 2, 3)


@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_are_those_of_the_librarys_own_pipeline(kind: str, tmp_path: Path) -> None:
    theirs = _saved(kind, tmp_path)
    videos = np.random.default_rng(0).integers(0, 256, (2, FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    config = TeacherConfig(encoder=f"hf:{tmp_path}")
    ours = make_encoder(config, 2, PICTURES, FRAMES).eval()
    clip = normalise(videos, PICTURES).transpose(1, 2)
    with torch.no_grad():
        want = theirs(_pixels(kind, videos)).logits
        torch.testing.assert_close(ours(clip), want, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(ours.head(ours.embed(clip)), want, atol=1e-4, rtol=1e-4)
        assert ours.embed(clip).shape == (2, ours.width)
        assert ours.forward_features(clip).shape[::2] == (2, ours.channels)
    assert isinstance(ours, Encoder)
    found = [layer_of(parameter, ours.layers()) for parameter, _ in ours.named_parameters()]
    assert sorted(set(found)) == list(range(len(ours.layers())))
    blocks = [name for name in ours.layers() if name.endswith((".0", ".1"))]
    assert len(blocks) == 2
    assert ours.layers().index(blocks[0]) in (1, 2)


@pytest.mark.parametrize("kind", CONFIGS)
def test_it_is_counted_on_the_meta_device_without_its_weights(kind: str, tmp_path: Path) -> None:
    _saved(kind, tmp_path)
    config = TeacherConfig(encoder=f"hf:{tmp_path}")
    real = make_encoder(config, 2, PICTURES, FRAMES)
    (tmp_path / "model.safetensors").unlink()
    with torch.device("meta"):
        looked_at = make_encoder(config, 2, PICTURES, FRAMES)
    assert measure(looked_at) == measure(real)
    assert measure(real).macs > 1e5


def test_pictures_and_frames_of_another_number_are_resampled(tmp_path: Path) -> None:
    theirs = _saved("videomae", tmp_path)
    larger = Preprocess(size=(64, 48))
    ours = make_encoder(TeacherConfig(encoder=f"hf:{tmp_path}"), 2, larger, 7).eval()
    grey = torch.linspace(-1, 1, 7)[None, None, :, None, None].expand(1, 3, 7, 64, 48)  # frame t is grey level t
    chosen = grey[:, :, [0, 2, 4, 6], :SIDE, :SIDE].transpose(1, 2)
    with torch.no_grad():
        want = theirs(chosen).logits  # this processor's mean and deviation are 0.5, as the preprocessing's
        torch.testing.assert_close(ours(grey), want, atol=1e-4, rtol=1e-4)


def test_answers_are_put_in_the_order_of_the_datas_labels(tmp_path: Path) -> None:
    _saved("timesformer", tmp_path)
    clip = torch.randn(2, 3, FRAMES, SIDE, SIDE)
    name = f"hf:{tmp_path}"
    with torch.no_grad():
        own = make_encoder(TeacherConfig(encoder=name), 2, PICTURES, FRAMES).eval()(clip)
        turned = open_classifier(name, ("left", "right"), PICTURES, FRAMES)(clip)
    torch.testing.assert_close(turned, own.flip(1))
    with pytest.raises(UserError, match=r"answers 2 labels \(right, left\.\.\.\), the data have 3"):
        open_classifier(name, ("left", "right", "up"), PICTURES, FRAMES)
    with pytest.raises(UserError, match=r"the data have 2 \(cat, dog\.\.\.\): fine-tune it first"):
        open_classifier(name, ("cat", "dog"), PICTURES, FRAMES)


def test_a_saved_one_is_rebuilt_without_its_source(tmp_path: Path) -> None:
    _saved("vivit", tmp_path / "source")
    model = make_encoder(TeacherConfig(encoder=f"hf:{tmp_path / 'source'}"), 3, PICTURES, FRAMES).eval()
    card = Card(kind="teacher", config=model.config.model_dump(mode="json"), labels=("a", "b", "c"),
                preprocess=PICTURES, frames=FRAMES)  # fmt: skip
    save_model(tmp_path / "saved", model, card)
    (tmp_path / "source").rename(tmp_path / "gone")
    clip = torch.randn(1, 3, FRAMES, SIDE, SIDE)
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "saved").model(clip), model(clip))


def test_it_is_fine_tuned_and_then_teaches(tmp_path: Path) -> None:
    _saved("videomae", tmp_path / "source")
    one: dict[str, object] = {"epochs": 1, "batch": 4}
    teacher: dict[str, object] = {"encoder": f"hf:{tmp_path / 'source'}"}
    recipe = tiny_recipe(write_data(tmp_path / "data", train=4, val=2), teacher=teacher,
                         finetune={**one, "freeze": 1}, distill=one)  # fmt: skip
    folder = finetune(recipe, tmp_path / "teacher")
    before = make_encoder(recipe.teacher, 2, recipe.preprocess, recipe.data.frames).state_dict()
    after = load_model(folder).model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("encoder.layer.1" in name for name in changed)
    assert not any("encoder.layer.0" in name or "embeddings" in name for name in changed)
    direct = distill(recipe, tmp_path / "student", Path(str(teacher["encoder"])))
    tuned = distill(recipe, tmp_path / "student2", folder)
    assert (direct / "model.safetensors").read_bytes() != (tuned / "model.safetensors").read_bytes()


def test_what_is_no_video_classifier_is_one_clear_line(tmp_path: Path) -> None:
    transformers.ViTForImageClassification(
        transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=16)
    ).save_pretrained(tmp_path / "picture")
    (tmp_path / "empty").mkdir()
    for folder in ("picture", "empty"):
        with pytest.raises(UserError, match="no video classifier that transformers can load") as refused:
            load_teacher(Path(f"hf:{tmp_path / folder}"), ("a", "b"), PICTURES, FRAMES)
        assert "\n" not in str(refused.value)
    with pytest.raises(UserError, match="do not exist: give a file, a folder, or a hub name"):
        load_teacher(Path(f"hf:{tmp_path / 'nothing'}"), ("a", "b"), PICTURES, FRAMES)
