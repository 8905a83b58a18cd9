"""The loop's options change how a model is trained as they say, and nothing else."""

import json
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.train.runner import Decoding, plan_of
from toolkit.errors import UnavailableDevice, UserError
from toolkit.recipe import FinetuneConfig, RunConfig
from train.data.batch import Batch
from train.loop import Plan, fit, rate, seeded
from train.loop.blocks import blocks_of
from train.loop.feed import Order
from train.models.vit import TubeletViT

CPU = RunConfig(device="cpu", workers=0)
OPTIM = FinetuneConfig(epochs=2, batch=8, lr=0.01)


def _fitted(out: Path, optim: FinetuneConfig = OPTIM, kind: str = "labels", **run: Any) -> dict[str, torch.Tensor]:
    plan = plan_of(kind, optim, CPU.model_copy(update=run))
    fit(plan, Decoding(), out)
    return plan.model.state_dict()


def _worst(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    return max((one[name] - two[name]).abs().max().item() for name in one)


def _lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], Path]:
    out = tmp_path_factory.mktemp("plain")
    return _fitted(out), out


def test_sgd_and_adamw_are_torchs_own_with_our_schedule(tmp_path: Path) -> None:
    """A loop of ten lines, written independently, ends at the same weights."""
    for name in ("sgd", "adamw"):
        optim = OPTIM.model_copy(update={"optimizer": name, "clip": 0.5, "weight_decay": 0.1})
        plan = plan_of("labels", optim, CPU)
        decayed = [p for p in plan.model.parameters() if p.ndim > 1]
        others = [p for p in plan.model.parameters() if p.ndim <= 1]
        groups: list[dict[str, Any]] = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0}]
        optimizer = torch.optim.SGD(groups, lr=1, momentum=0.9) if name == "sgd" else torch.optim.AdamW(groups, lr=1)
        for step in range(6):
            order = torch.randperm(24, generator=seeded(0, 1, step // 3))[step % 3 * 8 :][:8].sort().values
            batch = Decoding().batch(order.tolist(), int(seeded(0, 4, step).initial_seed()))
            loss = plan.loss(batch, seeded(0, 3, step))
            assert isinstance(loss, torch.Tensor)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(plan.model.parameters(), 0.5)
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * rate(step, 6, 0.1)
            optimizer.step()
        assert _worst(plan.model.state_dict(), _fitted(tmp_path / name, optim)) < 1e-6


def test_a_batch_in_parts_is_the_whole_batch(tmp_path: Path) -> None:
    """SGD, because Adam's first steps make a full step of any rounding error."""
    optim = OPTIM.model_copy(update={"optimizer": "sgd", "lr": 0.1})
    whole, parts = (_fitted(tmp_path / str(n), optim, accumulate=n) for n in (1, 3))  # 8 clips in 3, 3 and 2
    assert _worst(whole, parts) < 1e-6
    with pytest.raises(UserError, match="a batch of 8 videos cannot be split into 9 parts"):
        _fitted(tmp_path / "small", accumulate=9)


def test_recomputed_activations_change_nothing(plain: tuple[dict[str, torch.Tensor], Path], tmp_path: Path) -> None:
    assert _worst(plain[0], _fitted(tmp_path, checkpointing=True)) == 0.0


def test_recomputed_batch_norms_see_each_batch_once() -> None:
    from train.loop.blocks import recompute

    def net() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

    plain, lean = net(), net()
    undo = recompute(lean)
    x = torch.randn(2, 3, 8, 8)
    for model in (plain, lean):
        model(x).square().mean().backward()
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), lean.buffers(), strict=True))
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), lean.parameters(), strict=True)
               if a.grad is not None and b.grad is not None)  # fmt: skip
    undo()
    assert "forward" not in vars(lean)


def test_bf16_trains_float_weights_to_about_the_same_place(
    plain: tuple[dict[str, torch.Tensor], Path], tmp_path: Path
) -> None:
    state = _fitted(tmp_path, precision="bf16")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert _worst(plain[0], state) > 0
    losses = [[line["loss"] for line in _lines(out) if "lr" in line] for out in (plain[1], tmp_path)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


# torch 2.13 looks at the gradients of inputs while it traces, and hides the warning that this gives.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.slow
def test_compiled_blocks_train_the_same(plain: tuple[dict[str, torch.Tensor], Path], tmp_path: Path) -> None:
    assert _worst(plain[0], _fitted(tmp_path, compile=True)) < 1e-4


def _head(plan: Plan) -> nn.Linear:
    assert isinstance(plan.model, TubeletViT)
    return plan.model.head


def test_the_average_of_the_weights_is_validated_and_kept(tmp_path: Path) -> None:
    """After each step the weights are noted; the average is computed here from the notes alone."""
    plan = plan_of("labels", OPTIM.model_copy(update={"ema": 0.5}), CPU)
    head = _head(plan)
    seen: list[torch.Tensor] = []
    validated: list[torch.Tensor] = []

    def validate() -> float:
        validated.append(head.bias.detach().clone())
        return float(len(validated))

    average = head.bias.detach().clone()
    plan = replace(plan, after_step=lambda _: seen.append(head.bias.detach().clone()), validate=validate)
    fit(plan, Decoding(), tmp_path)
    for step, value in enumerate(seen, start=1):
        decay = min(0.5, step / (step + 9))
        average = decay * average + (1 - decay) * value
    assert torch.allclose(head.bias, average, atol=1e-7)
    assert torch.equal(validated[-1], head.bias)
    assert not torch.allclose(seen[-1], average, atol=1e-5)


def test_the_best_weights_win(tmp_path: Path) -> None:
    plan = plan_of("labels", OPTIM, CPU)
    head, scores = _head(plan), iter([0.9, 0.4])
    kept: list[torch.Tensor] = []

    def validate() -> float:
        kept.append(head.weight.detach().clone())
        return next(scores)

    assert fit(replace(plan, validate=validate), Decoding(), tmp_path).best == 0.9
    assert torch.equal(head.weight, kept[0])
    assert not torch.equal(kept[0], kept[1])


def test_what_is_frozen_stays_and_rates_are_scaled(tmp_path: Path) -> None:
    plan = plan_of("labels", OPTIM, CPU)
    _head(plan).bias.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in plan.model.state_dict().items()}
    fit(replace(plan, lr_scale=lambda name: 0.0 if name.startswith("blocks.0") else 1.0), Decoding(), tmp_path)
    changed = {name for name, tensor in plan.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert "head.bias" not in changed
    assert not any(name.startswith("blocks.0") for name in changed)
    assert {"head.weight", "blocks.1.qkv.weight", "patch_embed.weight"} <= changed


def test_a_run_leaves_what_is_needed_to_read_and_repeat_it(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _fitted(tmp_path, kind="masked", tracker="tensorboard")
    lines = _lines(tmp_path)
    steps, epochs = [x for x in lines if "lr" in x], [x for x in lines if "lr" not in x]
    assert [step["step"] for step in steps] == [1, 2, 3, 4, 5, 6]
    assert all(step["twice"] == pytest.approx(2 * step["loss"]) for step in steps)
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    assert epochs[0]["loss"] == pytest.approx(sum(step["loss"] for step in steps[:3]) / 3)
    assert all(epoch["clips_per_s"] > 0 and 0 <= epoch["waiting"] <= 1 for epoch in epochs)
    assert set(epochs[0]["seconds"]) == {"data", "forward", "backward", "optimizer", "other"}
    facts, summary = (json.loads((tmp_path / name).read_text()) for name in ("run.json", "summary.json"))
    assert (facts["seed"], facts["steps"], facts["processes"], facts["device"]) == (0, 6, 1, "cpu")
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["machine"]["cpu"]
    assert summary["loss"] == epochs[-1]["loss"]
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("step/loss")] == pytest.approx([step["loss"] for step in steps])


class Bad:
    """A source whose videos are all broken, decoded by workers."""

    workers = True

    def __len__(self) -> int:
        return 24

    def batch(self, indices: Sequence[int], seed: int, views: int = 1) -> Batch:
        raise UserError("data clips: 24 of 24 videos are broken; the first: a.mp4")


def test_an_error_in_a_worker_arrives_as_its_one_line(tmp_path: Path) -> None:
    plan = plan_of("labels", OPTIM, CPU.model_copy(update={"workers": 1}))
    with pytest.raises(UserError, match=r"^data clips: 24 of 24 videos are broken; the first: a\.mp4$"):
        fit(plan, Bad(), tmp_path)


def test_every_video_is_taken_once_an_epoch_whatever_the_processes() -> None:
    for processes, accumulate in ((1, 1), (2, 1), (2, 3), (4, 2)):
        ranks = [list(Order(50, 8, 2, 7, accumulate, processes, rank).parts(0)) for rank in range(processes)]
        whole = list(Order(50, 8, 2, 7, 1, 1, 0).parts(0))
        for step, part in enumerate(whole):
            mine = [piece for rank in ranks for piece in rank if piece.step == step]
            assert sorted(place for piece in mine for place in piece.places) == list(part.places)
            assert len({piece.number for piece in mine}) == processes * accumulate
            assert sum(piece.weight for piece in mine) == pytest.approx(processes)
        resumed = list(Order(50, 8, 2, 7, accumulate, processes, 0).parts(5))
        assert resumed == [part for part in ranks[0] if part.step >= 5]


def test_blocks_are_the_repeated_layers() -> None:
    plan = plan_of("masked", OPTIM, CPU)
    assert [type(block).__name__ for block in blocks_of(plan.model)] == ["Block"] * 2
    assert blocks_of(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))) == []


def test_a_gpu_that_is_not_there_is_said(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(UnavailableDevice, match="torch sees no GPU here"):
        fit(plan_of("labels", OPTIM, RunConfig(device="cuda")), Decoding(), tmp_path)


def test_a_dead_worker_is_named(tmp_path: Path) -> None:
    plan = plan_of("labels", OPTIM, CPU.model_copy(update={"workers": 1}))
    with pytest.raises(UserError, match="a decoding worker died"):
        fit(plan, Deadly(), tmp_path)


class Deadly(Bad):
    """A source whose worker is killed, as by a system that is out of memory."""

    def batch(self, indices: Sequence[int], seed: int, views: int = 1) -> Batch:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_plan_without_validation_keeps_the_last_weights(tmp_path: Path) -> None:
    plan = plan_of("labels", OPTIM, CPU)
    found = fit(Plan("bare", plan.model, plan.loss, OPTIM, run=CPU), Decoding(), tmp_path)
    assert (found.best, found.validation) == (None, ())
    assert len(found.losses) == 2
