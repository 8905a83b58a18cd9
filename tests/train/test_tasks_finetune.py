"""Fine-tuning: what is frozen stays bit for bit, rates follow the layers, and the test split decides nothing."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.train.synthetic import SIDE, tiny_recipe, write_data, write_video
from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from toolkit.recipe import FinetuneConfig, TeacherConfig, load_recipe
from toolkit.video import read_pictures
from train.compress.distill import distillation_loss
from train.data.batch import Batch
from train.data.clip import Clip
from train.data.clips import Pictures, load_pictures, normalise
from train.data.index import index_clips
from train.data.videos import VideoSource
from train.data.views import cut_views
from train.evaluate import Answers, answer, answer_views
from train.loop import Plan, fit
from train.models import build, load_model, save_model
from train.models.student import build_student
from train.models.vit import TubeletViT
from train.stages import distill, finetune, pretrain
from train.stages.common import card_of
from train.stages.finetune import frozen_norms, layer_rates
from train.stages.retrieve import class_planes, judge
from train.tasks import make_task
from train.tasks.retrieval import Retrieval

LAYERS = ["embed", "blocks.0", "blocks.1", "blocks.2", "norm", "head"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), train=8, val=3)


@pytest.fixture(scope="module")
def encoder(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pretrain(tiny_recipe(root, pretrain={"epochs": 1}), tmp_path_factory.mktemp("pretrained"))


def _clip(path: Path) -> Clip:
    return Clip(path, "", "", "")


def _changed(encoder: Path, teacher: Path) -> set[str]:
    """The layers of which any weight differs."""
    before, after = load_model(encoder).model.state_dict(), load_model(teacher).model.state_dict()
    return {
        ".".join(n.split(".")[: 2 if n.startswith("blocks") else 1])
        for n in after
        if not torch.equal(before[n], after[n])
    }


def test_rates_fall_by_one_power_a_layer_from_the_head_down() -> None:
    rate = layer_rates(LAYERS, FinetuneConfig(layer_decay=0.5))
    names = [
        "embed.weight",
        "blocks.0.qkv.weight",
        "blocks.1.mlp.0.bias",
        "blocks.2.norm1.weight",
        "norm.weight",
        "head.bias",
    ]
    assert [rate(name) for name in names] == [0.0625, 0.125, 0.25, 0.5, 1.0, 1.0]
    cnn = layer_rates(["stem", "layer1.0", "layer1.1", "head"], FinetuneConfig(layer_decay=0.5))
    assert [cnn(n) for n in ("stem.0.weight", "layer1.0.conv.weight", "layer1.1.bn.bias", "head.weight")] == [
        0.125,
        0.25,
        0.5,
        1.0,
    ]


def test_frozen_blocks_include_what_stands_before_them_and_never_the_head() -> None:
    rate = layer_rates(LAYERS, FinetuneConfig(freeze=2, layer_decay=0.5))
    assert [rate(f"{name}.weight") for name in LAYERS] == [0, 0, 0, 0.5, 1, 1]
    probe = layer_rates(LAYERS, FinetuneConfig(linear_probe=True))
    assert [probe(f"{name}.weight") for name in LAYERS] == [0, 0, 0, 0, 0, 1]
    with pytest.raises(UserError, match=r"finetune.freeze = 4, but the encoder has 3 blocks: freeze fewer"):
        layer_rates(LAYERS, FinetuneConfig(freeze=4))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"linear_probe": True, "label_smoothing": 0.2}, {"head"}),
        ({"freeze": 1}, {"blocks.1", "norm", "head"}),
        ({"layer_decay": 0.6, "rand_ops": 1, "cutmix": 1.0}, {"embed", "blocks.0", "blocks.1", "norm", "head"}),
    ],
)
def test_only_what_may_learn_changes(
    settings: dict[str, object], expected: set[str], root: Path, encoder: Path, tmp_path: Path
) -> None:
    teacher = finetune(tiny_recipe(root, finetune={"epochs": 1, **settings}), tmp_path / "teacher", encoder)
    changed = {"embed" if name == "patch_embed" else name for name in _changed(encoder, teacher)}
    assert changed == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 3}, r"blocks.2.norm1.weight is absent"),
        ({"depth": 1}, r"blocks.1.norm1.weight has no place in it"),
        ({"heads": 4}, r"have 2 heads, teacher.heads is 4: set it to 2"),
        ({"attention": "divided"}, r"time_norm.weight is absent"),
        ({"encoder": "r2plus1d", "width": 0.1}, r"do not fit r2plus1d: stem.0.weight is absent"),
    ],
)
def test_an_encoder_of_another_kind_is_no_start(
    settings: dict[str, object], message: str, root: Path, encoder: Path, tmp_path: Path
) -> None:
    recipe = tiny_recipe(root, teacher=settings, finetune={"epochs": 1})
    with pytest.raises(UserError, match=message):
        finetune(recipe, tmp_path / "init", encoder)
    given = recipe.model_copy(update={"teacher": recipe.teacher.model_copy(update={"pretrained": str(encoder)})})
    with pytest.raises(UserError, match=message):
        finetune(given, tmp_path / "pretrained")


def test_a_student_of_other_widths_is_no_start(root: Path, encoder: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(root, distill={"epochs": 1})
    older = distill(recipe, tmp_path / "older")

    def start(source: Path, **student: object) -> Path:
        update = {**student, "pretrained": source}
        return distill(recipe.model_copy(update={"student": recipe.student.model_copy(update=update)}), tmp_path / "s")

    for source, settings, reason in ((older, {"width": 0.5}, "has another shape"), (encoder, {}, "no weight fits")):
        with pytest.raises(UserError, match=rf"is no start for the recipe's student \(.*{reason}\)"):
            start(source, **settings)
    first = (start(older, look_back=False) / "done.json").read_text()
    distill(tiny_recipe(root, distill={"epochs": 2}), tmp_path / "older")  # other weights in the same place
    assert json.loads(first)["key"] != json.loads((start(older, look_back=False) / "done.json").read_text())["key"]


def test_frozen_batch_norms_keep_their_statistics() -> None:
    stem = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4))
    model = nn.ModuleDict({"stem": stem, "block": nn.BatchNorm3d(4), "head": nn.Linear(4, 2)})
    rates = layer_rates(["stem", "block", "head"], FinetuneConfig(linear_probe=True))
    assert frozen_norms(model, rates) == [stem[1], model["block"]]
    assert frozen_norms(model, layer_rates(["stem", "block", "head"], FinetuneConfig())) == []


def test_a_frozen_cnn_keeps_its_statistics_while_the_head_learns(root: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(root, teacher={"encoder": "r2plus1d", "width": 0.1}, finetune={"epochs": 1})
    card = card_of(recipe, "teacher", ("left", "right"))
    model = build(card)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean)  # type: ignore[arg-type]
    save_model(tmp_path / "start", model, card)

    def moved(settings: dict[str, object]) -> set[str]:
        tuned = recipe.model_copy(update={"finetune": recipe.finetune.model_copy(update=settings)})
        before, after = (
            load_model(f).model.state_dict()
            for f in (tmp_path / "start", finetune(tuned, tmp_path / "t", tmp_path / "start"))
        )
        return {name for name in after if not torch.equal(before[name], after[name])}

    assert moved({"linear_probe": True}) == {"head.weight", "head.bias"}
    partly = moved({"freeze": 2})
    layers = model.layers()  # type: ignore[operator]
    assert not any(name.startswith(tuple(f"{layer}." for layer in layers[:3])) for name in partly)
    assert any("running_mean" in name and name.startswith(layers[3]) for name in partly)


def test_the_test_split_is_answered_once_and_decides_nothing(root: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(root)
    whole = finetune(recipe, tmp_path / "whole")
    done = json.loads((whole / "done.json").read_text())
    model, data = load_model(whole).model, index_clips(root)
    expected = answer(model, load_pictures(data, "test", recipe.preprocess, 4), recipe.preprocess)
    assert done["test"]["top1"] == pytest.approx(expected.accuracy)
    assert done["test"]["clips"] == 6
    assert (whole / "figures" / "confusion.png").is_file()
    assert "test" not in (whole / "metrics.jsonl").read_text()
    # The same data with the answers of the test split turned round: every weight is the same.
    other = tmp_path / "other"
    shutil.copytree(root, other)
    (other / "test" / "left").rename(other / "test" / "x")
    (other / "test" / "right").rename(other / "test" / "left")
    (other / "test" / "x").rename(other / "test" / "right")
    turned = finetune(tiny_recipe(other), tmp_path / "turned")
    assert (turned / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    again = json.loads((turned / "done.json").read_text())
    assert again["validation"] == done["validation"]
    assert again["test"]["top1"] == pytest.approx(1 - done["test"]["top1"])


def test_data_without_a_test_split_report_none(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "test")
    done = finetune(tiny_recipe(tmp_path / "data", finetune={"epochs": 1}), tmp_path / "teacher") / "done.json"
    assert set(json.loads(done.read_text())) >= {"key", "stage", "validation"}
    assert "test" not in json.loads(done.read_text())


def test_the_one_view_is_that_of_training(root: Path) -> None:
    recipe, data = tiny_recipe(root), index_clips(root)
    loaded = load_pictures(data, "val", recipe.preprocess, 4)
    for name, pictures in zip(loaded.names, loaded.pictures, strict=True):
        assert np.array_equal(cut_views(_clip(Path(name)), recipe.preprocess, 4)[0], pictures)


@pytest.mark.parametrize("views", ["[0, 1]", "[1, 2]", "[1]"])
def test_views_that_are_none_are_refused_by_the_recipe(views: str) -> None:
    with pytest.raises(UserError, match=r"recipe: finetune\.views"):
        load_recipe(None, (f"finetune.views={views}",))


def test_views_cover_time_and_the_longer_side(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.avi", 3, 0, frames=9)
    narrow = Preprocess(size=(SIDE, SIDE // 2), fps=10.0)
    seen = cut_views(_clip(video), narrow, 4, temporal=2, spatial=3)
    assert seen.shape == (6, 4, SIDE, SIDE // 2, 3)
    whole = read_pictures(video, Preprocess(size=(SIDE, SIDE), fps=10.0))
    half, quarter = SIDE // 2, SIDE // 4
    for window, start in enumerate((0, 5)):
        assert np.array_equal(seen[3 * window], whole[start : start + 4, :, :half])
        assert np.array_equal(seen[3 * window + 1], whole[start : start + 4, :, quarter : quarter + half])
        assert np.array_equal(seen[3 * window + 2], whole[start : start + 4, :, half:])
    assert np.array_equal(
        cut_views(_clip(video), narrow, 12)[0][9:], np.repeat(cut_views(_clip(video), narrow, 9)[0][-1:], 3, 0)
    )


@pytest.mark.parametrize(
    ("fit", "spatial", "message"), [("crop", 2, "2 spatial views"), ("stretch", 3, 'fit = "crop"')]
)
def test_views_that_cannot_be_cut_are_refused(fit: str, spatial: int, message: str, tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.avi", 3, 0)
    with pytest.raises(UserError, match=message):
        cut_views(_clip(video), Preprocess.model_validate({"size": (SIDE, SIDE), "fit": fit}), 4, 1, spatial)


def test_many_views_are_averaged_and_broken_videos_are_left_out(root: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(root)
    torch.manual_seed(0)
    student = build_student(recipe.student, 2, (3, SIDE, SIDE), 4).eval()
    clips = index_clips(root).split("val")
    labels = np.arange(len(clips)) % 2
    one, many = (answer_views(student, clips, labels, recipe.preprocess, views) for views in ((1, 1), (2, 1)))
    parts = [Pictures(cut_views(clip, recipe.preprocess, 4, 2), np.zeros(2, np.int64), ("", "")) for clip in clips]
    each = [answer(student, part, recipe.preprocess).logits.mean(0) for part in parts]
    np.testing.assert_allclose(many.logits, np.stack(each), atol=1e-6)
    assert not np.allclose(one.logits, many.logits)
    (tmp_path / "broken.mp4").write_bytes(b"")
    broken = _clip(tmp_path / "broken.mp4")
    left = answer_views(student, [broken, *clips], np.append(7, labels), recipe.preprocess)
    assert left.labels.tolist() == labels.tolist()
    with pytest.raises(UserError, match="none of the 1 videos can be answered"):
        answer_views(student, [broken], np.zeros(1, np.int64), recipe.preprocess)


def test_distillation_with_many_labels_asks_each_class_by_itself() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[1.0, 0, 1, 0], [0.0, 0, 0, 1]])
    asked = torch.cat([logits.mean(1), logits.flatten(0, 1)])
    each = torch.nn.functional.binary_cross_entropy_with_logits(
        asked, torch.cat([labels, labels.repeat_interleave(3, 0)]), reduction="none"
    ).mean(1)
    weights = torch.tensor([1.0] * 2 + [0.5 / 3] * 6)
    assert distillation_loss(logits, labels, None, 0.5, 2.0).item() == pytest.approx(
        float((weights * each).sum() / weights.sum())
    )
    teacher = torch.randn(2, 4, generator=torch.Generator().manual_seed(1))
    matched = teacher[:, None].expand(2, 3, 4)
    assert distillation_loss(matched, labels, teacher, 1.0, 2.0).item() == pytest.approx(0.0, abs=1e-6)
    assert distillation_loss(logits, labels, teacher, 1.0, 2.0).item() > 0.01


def test_answers_with_many_labels_are_chosen_by_mean_average_precision() -> None:
    logits = np.array([[2.0, -1.0], [-1.0, 1.0], [1.0, 2.0]], np.float32)
    answers = Answers(logits, np.array([[1, 0], [0, 1], [0, 1]], np.float32))
    assert answers.multi_label
    assert answers.accuracy == pytest.approx(2 / 3)
    assert answers.score == 1.0
    assert card_of(tiny_recipe(Path()), "student", ("a", "b")).labels == ("a", "b")


def test_fine_tuning_for_retrieval_orders_clips_and_its_head_follows(root: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(root, finetune={"task": "retrieval", "epochs": 30, "batch": 16, "lr": 3e-3})
    teacher = finetune(recipe, tmp_path / "teacher")
    done = json.loads((teacher / "done.json").read_text())
    assert done["metric"] == "retrieval mAP"
    model, pre, index = load_model(teacher).model, recipe.preprocess, index_clips(root)
    train, val, test = (load_pictures(index, split, pre, 4) for split in ("train", "val", "test"))
    assert done["validation"] == pytest.approx(judge(model, val, pre, Retrieval(index.labels))["map"])
    assert done["test"]["retrieval"] == pytest.approx(judge(model, test, pre, Retrieval(index.labels)))
    untrained = build(card_of(recipe, "teacher", index.labels))
    assert judge(model, train, pre, Retrieval(index.labels))["map"] > 0.9
    assert judge(untrained, train, pre, Retrieval(index.labels))["map"] < 0.8
    assert answer(model, train, pre).accuracy > 0.9
    records = [json.loads(line) for line in (teacher / "metrics.jsonl").read_text().splitlines()]
    assert max(r["validation"] for r in records if "validation" in r) == pytest.approx(done["validation"], abs=1e-5)


def test_the_planes_between_class_means_part_what_is_apart() -> None:
    x = torch.tensor([[5.0, 0.1], [7.0, -0.2], [0.3, 4.0], [0.0, 9.0], [-3.0, -3.0]])
    labels = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 1], [0, 0]])
    weight, bias = class_planes(x, labels, 0.1)
    assert torch.equal((x @ weight.T + bias > 0).float(), labels)


@pytest.mark.parametrize("key", ["mixup=0.2", "cutmix=1.0", "linear_probe=true", "batch=2"])
def test_what_retrieval_cannot_use_is_refused(key: str) -> None:
    with pytest.raises(UserError, match="retrieval"):
        load_recipe(None, ('finetune.task="retrieval"', f"finetune.{key}"))


def test_a_broken_validation_clip_is_left_out_and_no_other_counts_twice(tmp_path: Path) -> None:
    write_data(tmp_path / "data", train=1, val=3)
    recipe = tiny_recipe(tmp_path / "data")
    model = build(card_of(recipe, "teacher", ("left", "right")))
    whole = answer(model, VideoSource(index_clips(tmp_path / "data"), "val", recipe.preprocess, 4, random=False),
                   recipe.preprocess)  # fmt: skip
    index = index_clips(tmp_path / "data")
    index.split("val")[1].path.write_bytes(b"broken")
    source = VideoSource(index, "val", recipe.preprocess, 4, random=False, broken_share=0.5)
    found = answer(model, source, recipe.preprocess, batch=2)
    kept = [0, 2, 3, 4, 5]
    assert found.labels.tolist() == whole.labels[kept].tolist()
    np.testing.assert_allclose(found.logits, whole.logits[kept], atol=1e-5)


@pytest.fixture(scope="module")
def many(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each clip moves left or right, and is or is not of an even number."""
    lines = ["path,label,split"]
    for index, clip in enumerate(index_clips(root).clips):
        lines.append(f"{clip.path},{clip.label}{';even' if index % 2 == 0 else ''},{clip.split}")
    path: Path = tmp_path_factory.mktemp("many") / "many.csv"
    path.write_text("\n".join(lines))
    return path


def test_teacher_and_student_learn_many_labels_from_data_that_have_them(many: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(many, finetune={"mixup": 0.4, "epochs": 1, "views": (2, 3)}, distill={"epochs": 1})
    teacher = finetune(recipe, tmp_path / "teacher")
    done = json.loads((teacher / "done.json").read_text())
    assert {"map", "exact", "f1"} <= set(done["test"])
    assert done["test"]["views"] == [2, 3]
    assert list(done["test"]["per_class"]) == ["even", "left", "right"]
    assert (teacher / "figures" / "average_precision.png").is_file()
    student = distill(recipe, tmp_path / "student", teacher)
    data = index_clips(many)
    answers = answer(load_model(student).model, load_pictures(data, "val", recipe.preprocess, 4), recipe.preprocess)
    assert answers.multi_label
    done = json.loads((student / "done.json").read_text())
    assert (done["metric"], done["validation"]) == ("mAP", pytest.approx(answers.score))
    assert load_model(student).card.lineage["multi_label"] is True


def test_many_labels_are_really_learned(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((64, 2)) < 0.5).astype(np.float32)
    pictures = np.full((64, 2, 16, 16, 3), 100, np.uint8)
    pictures[:, :, :8] += (100 * labels[:, 0].astype(np.uint8))[:, None, None, None, None]
    pictures[:, :, 8:] += (100 * labels[:, 1].astype(np.uint8))[:, None, None, None, None]
    data = Pictures(pictures, labels, ("",) * 64)
    torch.manual_seed(0)
    pre = Preprocess(size=(16, 16))
    config = TeacherConfig.model_validate({"dim": 16, "depth": 1, "heads": 2, "tubelet": (2, 8, 8)})
    model = TubeletViT(config, 2, (3, 16, 16), 2)
    task = make_task("classification", ("top", "bottom"), multi_label=True)
    optim = FinetuneConfig(epochs=30, batch=16, lr=5e-3)
    before = answer(model, data, pre).accuracy

    def loss(batch: Batch, generator: torch.Generator) -> torch.Tensor:
        return task.loss(batch, model(normalise(batch.first, pre).transpose(1, 2)))

    fit(Plan("toy", model, loss, optim), data, tmp_path)
    after = answer(model, data, pre)
    assert before < 0.6
    assert after.accuracy > 0.9
    assert after.score > 0.98
