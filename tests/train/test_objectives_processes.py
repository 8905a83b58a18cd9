"""All objectives in two processes, their weights whole (DDP) or in shards (FSDP2), on the CPU."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.train.runner import FRAMES, SIDE, Decoding, teacher
from toolkit.preprocess import Preprocess
from toolkit.recipe import PretrainConfig, RunConfig
from train.data.batch import Batch
from train.data.clips import Augment
from train.loop import Plan, fit, is_main
from train.objectives import OBJECTIVES, Mixture, resolve
from train.stages.pretrain import view_clips


def _train(out: Path, strategy: str) -> None:
    torch.set_num_threads(1)
    weights = dict.fromkeys(OBJECTIVES, 1.0)
    settings: dict[str, dict[str, object]] = {
        "contrastive": {"momentum": 0.5, "queue": 16},
        "adversarial": {"decoder": "convolutions", "width": 8, "critic_width": 4, "r1": 1.0},
        "autoencoder": {},
    }
    model = Mixture(teacher(), weights, resolve(weights, settings), (3, FRAMES, SIDE, SIDE))
    augment = Augment(Preprocess(size=(SIDE, SIDE)), ("a", "b"), True, {})

    def loss(batch: Batch, generator: torch.Generator) -> dict[str, torch.Tensor]:
        parts: dict[str, torch.Tensor] = model(view_clips(batch, augment, generator), generator, batch)
        return parts

    run = RunConfig.model_validate({"device": "cpu", "workers": 0, "strategy": strategy})
    config = PretrainConfig(epochs=2, batch=8, lr=1e-3)
    fit(Plan(strategy, model, loss, config, views=model.views, run=run, after_step=model.after_step), Decoding(), out)
    if is_main():
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, out / "final.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_all_objectives_train_in_two_processes(strategy: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-P", "-m", "tests.train.test_objectives_processes", str(tmp_path), strategy]
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    children = [
        subprocess.Popen(
            command,
            stderr=subprocess.PIPE,
            env={**os.environ, **world, "RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        for rank in ("0", "1")
    ]
    texts = [child.communicate(timeout=280)[1].decode() for child in children]
    assert [child.returncode for child in children] == [0, 0], texts[0][-2000:]
    state = load_file(tmp_path / "final.safetensors")
    name = "blocks.0.qkv.weight"
    start, now = teacher().state_dict()[name], state[f"encoder.{name}"]
    slow = state[f"objectives.contrastive.follower.0.{name}"]
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert 0 < (slow - now).norm() < (start - now).norm(), "the follower is on its way from the start to the encoder"


if __name__ == "__main__":
    _train(Path(sys.argv[1]), sys.argv[2])
