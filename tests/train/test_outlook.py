"""What a training will cost is said beforehand, agrees with what is counted otherwise, and trains nothing."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from tests.boxes import boxes_recipe, write_boxes
from tests.train.synthetic import tiny_recipe, write_data
from toolkit.cli import app
from toolkit.cli.forecast import forecast
from toolkit.errors import UserError
from toolkit.recipe import Recipe, StudentConfig, load_recipe
from toolkit.shelf import recipe_text, recipes
from train.detect.clip import ClipDetector
from train.macs import measure
from train.models.store import build, load_model
from train.outlook import _Kept, outlook
from train.stages import distill, finetune
from train.stages.common import card_of

VIT_B = {"dim": 768, "depth": 12, "heads": 12}


def _vidon(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize("name", sorted(recipes()))
def test_every_shipped_recipe_is_valid_and_can_be_planned(name: str, tmp_path: Path) -> None:
    code, text, _ = _vidon("train", "recipe", name)
    assert code == 0
    (tmp_path / "my.toml").write_text(text)
    assert load_recipe(tmp_path / "my.toml").version == 1
    code, text, errors = _vidon("train", "plan", tmp_path / "my.toml", "--clips", "5000", "--json")
    assert code == 0, errors
    rows = json.loads(text)["stages"]
    assert (
        [row["stage"] for row in rows] == ["finetune", "distill"]
        if name in ("i3d", "x3d")
        else ["pretrain", "finetune", "distill"]
    )
    assert all(row["memory_mib"] > 0 and row["steps"] > 0 and row["forward_gflops"] > 0 for row in rows)


def test_a_recipe_on_the_footage_of_vidon_trains_wherever_it_is_saved(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(_vidon("train", "recipe", "detection")[1])
    root = load_recipe(tmp_path / "my.toml").data.root
    assert root.is_absolute()
    assert root.name == "boxes.json"
    assert root.is_file()


def test_the_list_names_every_recipe_and_what_it_is_for() -> None:
    code, text, _ = _vidon("train", "recipes")
    assert code == 0
    assert [line.split()[0] for line in text.splitlines()] == sorted(recipes())
    assert {"pretrain-vitb-shards", "finetune", "linear-probe", "distill"} <= set(recipes())
    assert all(len(purpose) > 20 for purpose in recipes().values())


def test_an_unknown_recipe_or_stage_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"no recipe 'linear_probe' \(did you mean 'linear-probe'\?\)"):
        recipe_text("linear_probe")
    with pytest.raises(UserError, match=r"unknown stage 'finetuning' \(did you mean 'finetune'\?\)"):
        outlook(Recipe(), "finetuning", ("a", "b"), None)
    code, _, errors = _vidon("train", "plan", "--set", "run.precison=bf16")
    assert code == 2
    assert "did you mean 'precision'" in errors


def test_operations_and_parameters_agree_with_the_other_counter() -> None:
    """``train.macs`` runs the model with hooks on its layers; a multiply-add is two operations."""
    recipe = tiny_recipe(Path())
    for stage, kind in (("finetune", "teacher"), ("distill", "student")):
        found = outlook(recipe, stage, ("left", "right"), 100)
        size = measure(build(card_of(recipe, kind, ("left", "right"))))
        frames = 1 if kind == "teacher" else recipe.data.frames
        assert found.parameters == size.parameters
        assert found.forward_gflops * 1e9 == pytest.approx(2 * size.macs * frames, rel=0.01)


def test_vit_b_is_as_large_as_published() -> None:
    recipe = Recipe.model_validate({"teacher": VIT_B, "preprocess": {"size": (224, 224)}})
    found = outlook(recipe, "finetune", tuple(str(n) for n in range(400)), None)
    assert 86e6 < found.parameters < 87e6
    assert 175 < found.forward_gflops / 2 < 185  # 180 GFLOPs where a multiply-add counts once
    assert found.steps is None


def test_activations_are_what_autograd_keeps_of_a_real_step() -> None:
    """The same sum over a real forward pass on the CPU, where tensors have content."""
    recipe = tiny_recipe(Path(), finetune={"batch": 1})
    model = build(card_of(recipe, "teacher", ("left", "right")))
    kept = _Kept(model)
    with kept.watching([]):
        logits = model(torch.zeros(1, 3, 4, 32, 32))
        torch.nn.functional.cross_entropy(logits, torch.zeros(1, dtype=torch.long))
    found = outlook(recipe, "finetune", ("left", "right"), 10)
    assert found.activations_mib * 2**20 == pytest.approx(kept.total(), rel=0.001)


def test_recomputing_sharding_and_accumulation_save_memory() -> None:
    def memory(**run: object) -> float:
        recipe = Recipe.model_validate({"run": run, "finetune": {"batch": 16}})
        return outlook(recipe, "finetune", ("a", "b"), 100, processes=4 if "strategy" in run else 1).memory_mib

    plain = memory()
    assert memory(checkpointing=True) < 0.6 * plain
    assert memory(accumulate=4) < 0.5 * plain
    assert memory(precision="bf16") < 0.8 * plain
    assert memory(strategy="fsdp2") < 0.3 * plain


def test_steps_come_from_the_data_without_decoding_them(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", train=6, val=1)
    for video in root.rglob("*.avi"):
        video.write_bytes(b"no video at all")
    (tmp_path / "my.toml").write_text('[data]\nroot = "data"\nframes = 4\n[finetune]\nepochs = 3\nbatch = 4\n')
    code, text, _ = _vidon(
        "train", "plan", tmp_path / "my.toml", "--stage", "finetune", "--set", "preprocess.size=[32, 32]"
    )
    assert code == 0
    assert "12 training clips of 2 classes" in text
    assert "steps       9 (3 an epoch)" in text
    assert list(tmp_path.iterdir()) == [tmp_path / "data", tmp_path / "my.toml"] or len(list(tmp_path.iterdir())) == 2


def test_the_plan_reads_the_data_as_training_does(tmp_path: Path) -> None:
    lists, videos = tmp_path / "lists", tmp_path / "videos"
    lists.mkdir()
    (lists / "classInd.txt").write_text("1 Left\n2 Right\n")
    names = [f"{label}/v_{label}_g{group:02d}_c01.avi" for label in ("Left", "Right") for group in (1, 2, 3)]
    for name in names:
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).write_bytes(b"not looked into")
    for fold, train in (1, names[:2] + names[3:5]), (2, names[:1] + names[3:4]):
        (lists / f"trainlist0{fold}.txt").write_text("".join(f"{name} {1 + ('Right' in name)}\n" for name in train))
        (lists / f"testlist0{fold}.txt").write_text("".join(f"{n}\n" for n in names if n not in train))
    recipe = tiny_recipe(lists, data={"videos": videos, "fold": 2})
    assert forecast(recipe, "finetune", None, 1)["clips"] == 2
    for number in range(20):
        (tmp_path / "plain").mkdir(exist_ok=True)
        (tmp_path / "plain" / f"{number}.avi").write_bytes(b"not looked into")
    plain = forecast(tiny_recipe(tmp_path / "plain"), "pretrain", None, 1)
    assert 10 <= plain["clips"] < 20, plain["data"]  # without labels a folder of videos is enough


def test_a_detector_is_planned_as_it_is_trained(tmp_path: Path) -> None:
    recipe = boxes_recipe(write_boxes(tmp_path / "data"), epochs=2)
    trained = {"distill": distill, "finetune": finetune}
    first, *rows = forecast(recipe, None, None, 1)["stages"]
    assert first["steps"] == recipe.pretrain.epochs  # one training video is one clip
    for row in rows:
        out = trained[row["stage"]](recipe, tmp_path / row["stage"])
        model = load_model(out).model
        assert row["parameters"] == sum(parameter.numel() for parameter in model.parameters())
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        assert row["steps"] == max(line["step"] for line in lines)
        with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            clip = torch.zeros(1, 4, 3, *recipe.preprocess.size)
            answer = model.frames_answer(clip.transpose(1, 2)) if isinstance(model, ClipDetector) else model(clip)
        assert answer.shape[1] == 4
        assert row["forward_gflops"] == pytest.approx(counter.get_total_flops() / 1e9, rel=0.02)


def test_a_frozen_detector_learns_its_head_alone_and_its_plan_says_so(tmp_path: Path) -> None:
    path = write_boxes(tmp_path / "data")
    recipe = boxes_recipe(path, freeze=99).model_copy(update={"student": StudentConfig.model_validate(
        {"width": 0.25, "blocks": 5, "temporal": "none", "boxes": {"channels": 32}})})  # fmt: skip
    head, whole = (outlook(r, "distill", ("a", "b"), 8) for r in (
        recipe, boxes_recipe(path, freeze=0).model_copy(update={"student": recipe.student})))  # fmt: skip
    assert head.parameters == whole.parameters
    assert head.forward_gflops == whole.forward_gflops
    assert head.step_gflops < whole.step_gflops
    assert 0 < head.gradients_mib < whole.gradients_mib


def test_boxes_that_are_not_here_leave_the_steps_open_and_say_so(tmp_path: Path) -> None:
    found = forecast(boxes_recipe(tmp_path / "none.json"), "distill", None, 1)
    assert "do not exist" in found["data"]
    assert found["stages"][0]["steps"] is None


def test_a_stage_that_cannot_be_trained_fails_the_plan_and_the_others_are_told(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(recipe_text("x3d") + "\n[pretrain]\nepochs = 1\n")
    plan = ("train", "plan", tmp_path / "my.toml", "--clips", "100")
    code, text, errors = _vidon(*plan, "--json")
    found = json.loads(text)
    assert code == 2
    assert [row["stage"] for row in found["stages"]] == ["finetune", "distill"]
    assert list(found["errors"]) == ["pretrain"]
    assert errors == f"error: pretrain: {found['errors']['pretrain']}\n"
    code, text, errors = _vidon(*plan)
    assert (code, text.count("GFLOPs a clip forward")) == (2, 2)
    assert "hides tubelets" in errors
    assert _vidon(*plan, "--stage", "pretrain")[0] == 2


def test_an_unknown_stage_is_refused_before_the_data_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    read: list[object] = []
    monkeypatch.setattr("train.data.index.index_clips", read.append)
    code, _, errors = _vidon("train", "plan", "--stage", "finetuning", "--set", f"data.root={tmp_path / 'data'}")
    assert (code, read) == (2, [])
    assert "did you mean 'finetune'" in errors
