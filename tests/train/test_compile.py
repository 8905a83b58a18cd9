"""``run.compile``: the stages run to their end compiled, learn the same, and leave what an uncompiled run leaves."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from torch._inductor import config

from tests.train.runner import Decoding, plan_of
from tests.train.synthetic import tiny_recipe, write_data
from tests.train.test_processes import ROOT, RUNNER
from toolkit.errors import UserError
from toolkit.recipe import FinetuneConfig, Recipe, RunConfig
from train.loop import fit
from train.stages import distill, finetune, pretrain

# torch 2.13 looks at the gradients of inputs while it traces, and hides the warning that this gives.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
OPTIM = FinetuneConfig(epochs=8, batch=8, lr=0.01, ema=0.9)


@pytest.fixture(autouse=True)
def _fresh() -> Any:
    """One thread, and nothing compiled before counts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), train=8, val=3)


def test_a_missing_compiler_is_one_line(tmp_path: Path) -> None:
    message = r"^run\.compile = true needs a C\+\+ compiler and finds none: install g\+\+"
    with config.patch({"cpp.cxx": ("no-such-compiler",)}), pytest.raises(UserError, match=message):
        fit(plan_of("labels", OPTIM, RunConfig(device="cpu", workers=0, compile=True)), Decoding(), tmp_path)


def _recipe(data: Path, **run: Any) -> Recipe:
    run = {"device": "cpu", "workers": 0, "save_every_s": 0, **run}
    # Five videos fall into parts of 3 and 2; nothing is left to chance that rounding could decide.
    plain = {"optimizer": "sgd", "lr": 0.01, "epochs": 1, "batch": 5, "clip": 0.0}
    small = {**plain, "lr": 1e-4}  # batch norms over maps of one pixel make large differences of rounding ones
    student: dict[str, object] = {"dropout": 0.0}  # it draws in the order of memory, which compiled code may change
    return tiny_recipe(data, run=run, pretrain=plain, finetune=plain, distill=small, student=student)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "run"),
    [(pretrain, {}), (finetune, {}), (finetune, {"checkpointing": True}), (finetune, {"precision": "bf16"}),
     (distill, {}), (distill, {"checkpointing": True})],
    ids=["pretrain", "finetune", "finetune-recomputed", "finetune-bf16", "distill", "distill-recomputed"],
)  # fmt: skip
def test_a_compiled_stage_ends_where_a_plain_one_does(
    stage: Any, run: dict[str, Any], data: Path, tmp_path: Path
) -> None:
    plain = stage(_recipe(data, **run), tmp_path / "plain")
    assert not counters["stats"]
    fast = stage(_recipe(data, compile=True, **run), tmp_path / "fast")
    assert counters["stats"]["unique_graphs"] > 0
    assert not counters["unimplemented"]
    assert not counters["recompile_limit"]
    one, two = (load_file(folder / "model.safetensors") for folder in (plain, fast))
    assert one.keys() == two.keys()
    near = 0.05 if run.get("precision") == "bf16" else 1e-4
    for name in one:
        torch.testing.assert_close(one[name].float(), two[name].float(), atol=near, rtol=1e-3, msg=name)
    losses = [json.loads((folder / "summary.json").read_text())["loss"] for folder in (plain, fast)]
    assert losses[0] == pytest.approx(losses[1], rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["c3d", "r2plus1d", "x3d-s"])
@pytest.mark.parametrize("stage", [pretrain, finetune])
def test_cnns_with_and_without_repeated_blocks_train_compiled(
    stage: Any, encoder: str, data: Path, tmp_path: Path
) -> None:
    recipe = _recipe(data, compile=True)
    teacher = recipe.teacher.model_validate({"encoder": encoder, "width": 0.1, "depth_factor": 0.5})
    objectives = {"objectives": {"contrastive": 1.0}, "settings": {}}
    recipe = recipe.model_copy(
        update={"teacher": teacher, "pretrain": recipe.pretrain.model_copy(update=objectives)}
    )  # fmt: skip
    folder = stage(recipe, tmp_path / "fast")
    assert counters["stats"]["unique_graphs"] > 0
    assert not any("_orig_mod" in name for name in load_file(folder / "model.safetensors"))


@pytest.mark.slow
def test_a_compiled_run_that_was_killed_goes_on_to_the_last_bit(tmp_path: Path) -> None:
    run = RunConfig(device="cpu", workers=0, compile=True)
    whole = plan_of("masked", OPTIM, run)
    fit(whole, Decoding(), tmp_path / "whole")
    options = ["kinds=masked", "epochs=8", "ema=0.9", "save_every_s=0.2", "pause_s=0.05", "compile=true"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    child = subprocess.Popen([*RUNNER, str(tmp_path / "cut"), *options], env=env)
    checkpoint = tmp_path / "cut" / "masked" / "checkpoint.safetensors"
    while not checkpoint.exists() and child.poll() is None:
        time.sleep(0.01)
    time.sleep(0.3)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    with safe_open(checkpoint, framework="pt") as opened:
        assert not any("_orig_mod" in name for name in opened.keys())  # noqa: SIM118
        assert 0 < json.loads(opened.metadata()["history"])["step"] < 24
    torch._dynamo.reset()
    resumed = plan_of("masked", OPTIM, run)
    fit(resumed, Decoding(), tmp_path / "cut" / "masked")
    final = whole.model.state_dict()
    assert all(torch.equal(tensor, final[name]) for name, tensor in resumed.model.state_dict().items())
    lines = [
        [line for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines() if '"lr"' in line]
        for name in ("whole", "cut/masked")
    ]  # fmt: skip
    assert lines[0] == lines[1]
