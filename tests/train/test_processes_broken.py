"""Broken videos in two real processes: counted together, named once, and both end at the same step."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.train.synthetic import write_video
from toolkit.cli.launch import spread
from train.data.index import index_clips
from train.loop.feed import Order

ROOT = Path(__file__).parents[2]
CLIPS, BATCH = 40, 8
RECIPE = """
data = { root = "data", frames = 4, source = "files", val_share = 0 }
preprocess = { size = [32, 32] }
run = { device = "cpu", workers = 1 }
teacher = { dim = 16, depth = 1, heads = 2, tubelet = [2, 8, 8] }
finetune = { epochs = 2, batch = 8 }
"""


def _taken(rank: int) -> list[int]:
    """Places that a process takes in the first epoch, in its order."""
    parts = Order(CLIPS, BATCH, 1, 0, 1, 2, rank).parts(0)
    return [place for part in parts for place in part.places]


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[[list[int]], Path]:
    """A recipe whose training clips at these places are broken."""

    def make(broken: list[int]) -> Path:
        for index in range(CLIPS):
            write_video(tmp_path / "data" / "train" / "ab"[index % 2] / f"{index:02d}.avi", 2, index, frames=4)
        clips = index_clips(tmp_path / "data").split("train")
        assert len(clips) == CLIPS
        for place in broken:
            clips[place].path.write_bytes(b"rubbish")
        (tmp_path / "my.toml").write_text(RECIPE)
        return tmp_path / "my.toml"

    return make


def _finetune(recipe: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    words = ["finetune", str(recipe), "--out", str(recipe.parent / "out"), "--processes", "2", *options]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-P", "-m", "toolkit", *words], capture_output=True, text=True, check=False, env=env,
        timeout=120,
    )  # fmt: skip


def test_two_processes_end_together_when_together_they_meet_too_many(
    recipe: Callable[[list[int]], Path],
) -> None:
    """Each meets 3 broken ones at once, which alone it would bear: more than a fifth of 20 is 5."""
    done = _finetune(recipe([*_taken(0)[:3], *_taken(1)[:3]]), "--set", "run.workers=0")
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    (line,) = [line for line in lines if line.startswith("error:")]
    assert re.search(r"5 of \d+ videos read so far are broken; the first: .*\.avi", line)
    assert "Traceback" not in done.stderr
    assert len([line for line in lines if line.startswith("left out a broken video")]) == 5


TOGETHER = """
import json, sys
from pathlib import Path
import torch
from tests.train.runner import Decoding as Synthetic
from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from train.data.index import index_clips
from train.data.videos import VideoSource
from train.loop.feed import Feed, Order

class Failing(Synthetic):
    def known(self, indices): return {}
    def judge(self, batch): pass
    def shape(self, videos, views): return videos, views
    def draw(self, places, seed, views=1, known=None, out=None):
        if torch.distributed.get_rank() == 1 and sizes:
            raise UserError("the second process cannot read its disk")
        return self.batch(places, seed, views)

def run(source, batch):
    feed = Feed(source, Order(len(source), batch, 1, 0, 1, 2, rank), 0, 1, 0, torch.device("cpu"))
    try:
        while True:
            sizes.append(len(feed.next()[1].indices))
    except StopIteration:
        return sorted(source.broken)
    except UserError as error:
        return str(error)

torch.distributed.init_process_group("gloo")
rank, root = torch.distributed.get_rank(), Path(sys.argv[1])
source = VideoSource(index_clips(root / "data"), "train", Preprocess(size=(32, 32)), 4)
found = []
for case in (source, Failing()):
    sizes = []
    found.append((run(case, 8 if case is source else 7), sizes))
(root / f"{rank}.json").write_text(json.dumps(found))
torch.distributed.destroy_process_group()  # gloo's threads may end the interpreter with an abort otherwise
"""


def test_all_processes_count_alike_and_what_stops_one_stops_the_others(
    recipe: Callable[[list[int]], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """The second process meets 5 broken of its 20, a quarter, which alone would end it; both together 5 of 40."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    broken = _taken(1)[1::4]
    recipe(broken)
    clips = index_clips(tmp_path / "data").split("train")
    began_s = time.monotonic()
    assert spread([sys.executable, "-P", "-c", TOGETHER, str(tmp_path)], 2) == 0
    assert time.monotonic() - began_s < 60
    (tolerant, failing), (also, failing_too) = (json.loads((tmp_path / f"{n}.json").read_text()) for n in (0, 1))
    assert tolerant == also == [sorted(clips[place].name for place in broken), [4] * 5]
    errors = capfd.readouterr().err
    assert [errors.count(f"{clips[place].name} cannot be read") for place in broken] == [1] * 5
    assert failing == ["the second process cannot read its disk", [4]]
    assert failing_too == ["the second process cannot read its disk", [3]]
