"""Training resumes exactly: after an interrupt, and after kill -9 of a real process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.train.synthetic import tiny_recipe, write_data
from toolkit.errors import UserError
from toolkit.lock import alone
from train.data.batch import Batch
from train.data.clips import Pictures
from train.loop import Plan, checkpoint, fit
from train.models import load_model
from train.stages import distill, finetune, pretrain, prune
from train.stages.common import guide_of
from train.stages.distill import spread

DATA = Pictures(
    np.random.default_rng(0).integers(0, 256, (24, 1, 4, 4, 3), dtype=np.uint8), np.arange(24) % 2, ("",) * 24
)


def _plan(stop_at: int | None = None, epochs: int = 3, lr: float = 0.01) -> Plan:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(48, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 2))
    calls = [0]

    def loss(batch: Batch, generator: torch.Generator) -> torch.Tensor:
        if calls[0] == stop_at:
            raise KeyboardInterrupt
        calls[0] += 1
        x = batch.first.float().flatten(1) / 255
        return torch.nn.functional.cross_entropy(model(x + torch.rand(x.shape, generator=generator)), batch.labels)

    recipe = tiny_recipe(Path(), finetune={"epochs": epochs, "batch": 4, "lr": lr})
    return Plan("toy", model, loss, recipe.finetune, validate=lambda: 0.5, every_s=0.0)


def _weights(plan: Plan) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in plan.model.parameters()]


@pytest.mark.parametrize("stop", [1, 5, 6, 11])
def test_an_interrupted_run_ends_bit_for_bit_as_an_uninterrupted_one(stop: int, tmp_path: Path) -> None:
    whole = _plan()
    history = fit(whole, DATA, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(_plan(stop_at=stop), DATA, tmp_path / "cut")
    resumed = _plan()
    assert fit(resumed, DATA, tmp_path / "cut") == history
    assert all(torch.equal(a, b) for a, b in zip(_weights(whole), _weights(resumed), strict=True))


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    one, two = _plan(), _plan()
    fit(one, DATA, tmp_path / "one")
    other = tiny_recipe(Path(), finetune={"epochs": 3, "batch": 4, "lr": 0.01, "seed": 1}).finetune
    fit(Plan("toy", two.model, two.loss, other), DATA, tmp_path / "two")
    assert not all(torch.equal(a, b) for a, b in zip(_weights(one), _weights(two), strict=True))


def test_a_loss_that_is_not_finite_says_what_to_do(tmp_path: Path) -> None:
    plan = _plan()
    broken = Plan("toy", plan.model, lambda *_: torch.tensor(float("nan"), requires_grad=True), plan.optim)
    with pytest.raises(UserError, match=r"the loss is nan at step 0: lower the learning rate"):
        fit(broken, DATA, tmp_path)


def test_a_gradient_that_is_not_finite_is_refused_even_at_the_last_step(tmp_path: Path) -> None:
    plan = _plan(epochs=1)
    weight = next(plan.model.parameters())
    last, calls = len(DATA) // plan.optim.batch, [0]

    def loss(*_: object) -> torch.Tensor:
        calls[0] += 1
        flat = weight.sum() * 0
        return flat + flat.sqrt() if calls[0] == last else flat  # finite, but its slope is not

    with pytest.raises(UserError, match=rf"the gradient's norm is (nan|inf) at step {last - 1}: lower"):
        fit(Plan("toy", plan.model, loss, plan.optim), DATA, tmp_path)


def test_an_interrupted_run_of_other_settings_is_kept_and_what_changed_is_told(tmp_path: Path) -> None:
    recipe = tiny_recipe(write_data(tmp_path / "data", train=4, val=1), finetune={"epochs": 1})
    out = finetune(recipe, tmp_path / "t")
    (out / "checkpoint.safetensors").write_bytes(b"left by a kill after the end")
    other = recipe.model_copy(update={"finetune": recipe.finetune.model_copy(update={"lr": 0.5})})
    finetune(other, out)  # what is finished is trained anew
    assert not (out / "checkpoint.safetensors").exists()
    (out / "done.json").unlink()
    (out / "checkpoint.safetensors").write_bytes(b"days of work")
    with pytest.raises(UserError, match=r"interrupted run of other settings.*\(finetune.lr 0.5, now 0.001\)"):
        finetune(recipe, out)
    assert (out / "checkpoint.safetensors").read_bytes() == b"days of work"
    assert json.loads((out / "recipe.json").read_text())["finetune"]["lr"] == 0.5
    (out / "checkpoint.safetensors").unlink()
    assert (finetune(recipe, out) / "done.json").exists()


def test_a_foreign_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(_plan(stop_at=4), DATA, tmp_path)
    with pytest.raises(UserError, match=r"is of a run of 18 steps, this one has 30"):
        fit(_plan(epochs=5), DATA, tmp_path)
    whole = bytearray((tmp_path / "checkpoint.safetensors").read_bytes())
    whole[-5] ^= 1
    (tmp_path / "checkpoint.safetensors").write_bytes(whole)
    with pytest.raises(UserError, match="its bits have changed on the disk"):
        fit(_plan(), DATA, tmp_path)
    (tmp_path / "checkpoint.safetensors").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="does not belong to this run"):
        fit(_plan(), DATA, tmp_path)


def test_a_disk_that_is_full_at_a_checkpoint_is_one_clear_line(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    fit(_plan(epochs=1), DATA, tmp_path)
    before, limits = (tmp_path / "checkpoint.safetensors").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))  # the next one breaks off
    try:
        with pytest.raises(UserError, match=r"cannot write .*the file is larger than this system allows"):
            checkpoint.write(tmp_path / "checkpoint.safetensors", {"model": _plan().model.state_dict()}, {}, True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert not list(tmp_path.glob(".checkpoint*"))


def test_kill_9_in_training_and_resume_gives_the_same_weights(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", train=8, val=2)
    code = (
        "import sys, torch; from pathlib import Path; torch.set_num_threads(1)\n"
        "from tests.train.synthetic import tiny_recipe; from train.stages import distill\n"
        "recipe = tiny_recipe(Path(sys.argv[1]), distill={'epochs': 12, 'batch': 4})\n"
        "print('ready', flush=True); distill(recipe, Path(sys.argv[2]))"
    )
    repository = Path(__file__).parents[2]

    def start(out: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-P", "-c", code, str(root), str(out)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                env={**os.environ, "PYTHONPATH": str(repository)})  # fmt: skip

    whole = start(tmp_path / "whole")
    assert whole.wait() == 0
    kills = 0
    for _ in range(2):
        child = start(tmp_path / "cut")
        assert child.stdout is not None
        child.stdout.readline()
        before = _mtime(tmp_path / "cut" / "checkpoint.safetensors")
        for _ in range(2000):  # kill it shortly after it has saved something new
            if _mtime(tmp_path / "cut" / "checkpoint.safetensors") != before or child.poll() is not None:
                break
            time.sleep(0.01)
        if child.poll() is None:
            child.send_signal(signal.SIGKILL)
            kills += 1
        child.wait()
        child.stdout.close()
    assert kills == 2
    assert start(tmp_path / "cut").wait() == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def _mtime(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def test_the_stages_walk_the_road_and_are_not_repeated(tmp_path: Path) -> None:
    recipe = tiny_recipe(write_data(tmp_path / "data", train=8, val=2))
    encoder = pretrain(recipe, tmp_path / "pretrained")
    teacher = finetune(recipe, tmp_path / "teacher", encoder)
    student = distill(recipe, tmp_path / "student", teacher)
    pruned = prune(recipe, tmp_path / "pruned", student, teacher)
    for folder in (encoder, teacher, student, pruned):
        assert json.loads((folder / "done.json").read_text())["stage"]
        assert not (folder / "checkpoint.safetensors").exists()
    before = (pruned / "model.safetensors").stat().st_mtime_ns
    assert prune(recipe, tmp_path / "pruned", student, teacher) == pruned
    assert (pruned / "model.safetensors").stat().st_mtime_ns == before
    prune(
        recipe.model_copy(update={"prune": recipe.prune.model_copy(update={"ratio": 0.2})}),
        tmp_path / "pruned",
        student,
    )
    assert (pruned / "model.safetensors").stat().st_mtime_ns != before
    whole, small = load_model(student).model, load_model(pruned).model
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in whole.parameters())


def test_a_finished_stage_whose_weights_are_damaged_is_trained_again(tmp_path: Path) -> None:
    recipe = tiny_recipe(write_data(tmp_path / "data", train=4, val=1), distill={"epochs": 1})
    weights = distill(recipe, tmp_path / "s") / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    (tmp_path / "s" / ".checkpoint.safetensors.ab12cd34").write_bytes(b"half of one, from a run that was killed")
    distill(recipe, tmp_path / "s")
    assert weights.read_bytes() == whole
    assert not list((tmp_path / "s").glob(".checkpoint*"))
    weights.unlink()
    distill(recipe, tmp_path / "s")
    assert weights.read_bytes() == whole


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe(write_data(tmp_path / "data", train=4, val=1), distill={"epochs": 1})
    (tmp_path / "s").mkdir()
    with alone(tmp_path / "s", "training"), pytest.raises(UserError, match="another vidon is training in"):
        distill(recipe, tmp_path / "s")
    assert not (tmp_path / "s" / "metrics.jsonl").exists()
    assert (distill(recipe, tmp_path / "s") / "done.json").exists()


def test_recovery_after_pruning_has_its_own_batch(tmp_path: Path) -> None:
    recipe = tiny_recipe(write_data(tmp_path / "data", train=4, val=1), distill={"epochs": 1}, prune={"batch": 2})
    pruned = prune(recipe, tmp_path / "pruned", distill(recipe, tmp_path / "s"))
    assert json.loads((pruned / "summary.json").read_text())["steps"] == 4
    assert json.loads((tmp_path / "s" / "summary.json").read_text())["steps"] == 1


def test_a_teacher_cannot_be_pruned_as_a_student(tmp_path: Path) -> None:
    recipe = tiny_recipe(write_data(tmp_path / "data", train=4, val=1))
    encoder = pretrain(recipe, tmp_path / "pretrained")
    with pytest.raises(UserError, match="only streaming students are pruned"):
        prune(recipe, tmp_path / "pruned", encoder)
    with pytest.raises(UserError, match="holds no model"):
        prune(recipe, tmp_path / "pruned", tmp_path / "nothing")


def test_a_model_of_other_labels_neither_teaches_nor_is_pruned(tmp_path: Path) -> None:
    """As many classes as the data has, so that the shapes fit: the answers would mean something else."""
    student = distill(tiny_recipe(write_data(tmp_path / "data", train=2, val=1), distill={"epochs": 1}), tmp_path / "s")
    for split in (tmp_path / "data").iterdir():
        (split / "left").rename(split / "up")
    other = tiny_recipe(tmp_path / "data", data={"flips": {}})
    with pytest.raises(UserError, match=r"knows left, right, the data have right, up: train it again on these"):
        prune(other, tmp_path / "pruned", student)
    with pytest.raises(UserError, match=r"knows left, right, the data have right, up"):
        distill(other, tmp_path / "t", teacher=student)
    assert not (tmp_path / "pruned").exists()


def test_a_teacher_that_saw_other_pictures_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tiny_recipe(write_data(tmp_path / "data", train=2, val=1), distill={"epochs": 1})
    teacher = distill(recipe, tmp_path / "s")
    guide_of(teacher, recipe)
    assert "saw" not in capsys.readouterr().err
    guide_of(teacher, tiny_recipe(tmp_path / "data", preprocess={"fps": 5.0}))
    assert f"{teacher} saw clips otherwise (fps 10.0, now 5.0)" in capsys.readouterr().err


@pytest.mark.parametrize("total", [1, 31, 32, 33, 63, 160, 1000])
def test_channels_are_judged_on_clips_from_all_over_the_data(total: int) -> None:
    """Data are sorted by class: the first clips would all be of one."""
    chosen = spread(total, 32)
    assert len(set(chosen)) == len(chosen) == min(total, 32)
    assert (chosen[0], max(chosen) < total, chosen[-1] >= total - total / 32 - 1) == (0, True, True)


def test_decoding_on_demand_trains_the_same_model_as_memory(tmp_path: Path) -> None:
    root = write_data(tmp_path / "data", train=4, val=1)
    weights = []
    for source in ("memory", "files"):
        data: dict[str, object] = {"source": source, "frames": 8}  # as long as the clips: there is one window only
        recipe = tiny_recipe(root, data=data, finetune={"epochs": 1}, run={"workers": 1})
        weights.append(load_file(finetune(recipe, tmp_path / source) / "model.safetensors"))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_misspelt_encoder_is_told_before_anything_is_written(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "absent", teacher={"encoder": "vitb"})
    for stage in (pretrain, finetune):
        with pytest.raises(UserError, match=r"unknown teacher.encoder 'vitb' \(did you mean 'vit-b'\?\)"):
            stage(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_demos_report_draws_the_curves_that_the_loop_leaves(tmp_path: Path) -> None:
    from toolkit.cli.demo import _curves

    root = write_data(tmp_path / "data", train=4, val=2)
    recipe = tiny_recipe(root)
    pretrain(recipe, tmp_path / "pretrained")
    for name in ("teacher", "control", "student", "pruned"):
        finetune(recipe, tmp_path / name)
    curves = {(curve.panel, curve.name): curve.points for curve in _curves(tmp_path)}
    assert [epoch for epoch, _ in curves["training loss", "pretrained"]] == [1, 2]
    assert [epoch for epoch, _ in curves["validation accuracy", "student"]] == [1, 2]
    assert ("validation accuracy", "pretrained") not in curves
