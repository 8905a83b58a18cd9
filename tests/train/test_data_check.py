"""``vidon data check`` finds what would spoil a training, and says what to do."""

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.train.videos import encode, moving_frames, remux, sound_only
from toolkit.cli import app
from train.data.check import ADVICE, check
from train.data.index import index_clips


def vidon(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good")
    seeds = iter(range(100))
    for split, count in (("train", 5), ("val", 2), ("test", 2)):
        for label in ("a", "b"):
            for index in range(count):
                encode(root / split / label / f"{split}{label}{index}.mp4", moving_frames(12, seed=next(seeds)))
    return root


def copy(good: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(good, tmp_path / "data"))


@pytest.mark.parametrize("workers", ["1", "2"])
def test_good_data_pass_and_are_counted(good: Path, workers: str) -> None:
    code, out, _ = vidon("data", "check", good, "--frames", "12", "--workers", workers, "--json")
    result = json.loads(out)
    assert (code, result["ok"], result["clips"], result["frames"]) == (0, True, 18, 216)
    assert result["counts"]["val"] == {"a": 2, "b": 2}


def test_each_problem_is_found_by_name(good: Path, tmp_path: Path) -> None:
    root = copy(good, tmp_path)
    (root / "train" / "a" / "traina0.mp4").write_bytes(b"")
    (root / "train" / "a" / "traina1.mp4").write_text("text")
    sound_only(root / "train" / "b" / "song.mp4")
    encode(root / "train" / "b" / "short.mp4", moving_frames(3, seed=77))
    shutil.copy(root / "train" / "b" / "trainb0.mp4", root / "train" / "b" / "again.mp4")
    remux(root / "train" / "b" / "trainb1.mp4", root / "test" / "b" / "other.mkv")
    shutil.copy(root / "val" / "a" / "vala0.mp4", root / "val" / "b" / "contradiction.mp4")
    shutil.copy(root / "val" / "a" / "vala1.mp4", root / "train" / "a" / "vala1.mp4")
    code, out, err = vidon("data", "check", root, "--frames", "8", "--workers", "2", "--json")
    found = json.loads(out)
    assert code == 2
    assert "Traceback" not in err
    assert len(found["broken"]) == 3
    assert "traina0.mp4 holds nothing (0 bytes)" in found["broken"][0]
    assert "holds no pictures, only audio" in found["broken"][2]
    assert [line.split("/")[-1] for line in found["short"]] == ["short.mp4 has 3 of 8 pictures at 10 a second"]
    assert len(found["duplicates"]) == 2
    assert "again.mp4" in "".join(found["duplicates"])
    assert len(found["labels"]) == 1
    assert "contradiction.mp4" in found["labels"][0]
    leaks = "\n".join(found["leaks"])
    assert "trainb1.mp4: the same frames in test and train" in leaks
    assert "group vala1 is in train and val" in leaks
    text = vidon("data", "check", root, "--frames", "8", "--workers", "1")[1]
    assert "what to do" in text
    assert ADVICE["leak"] in text


def test_a_copy_in_another_container_is_a_copy_and_another_part_is_not(good: Path, tmp_path: Path) -> None:
    video = encode(tmp_path / "v.mp4", moving_frames(30))
    remux(video, tmp_path / "w.mkv")
    lines = ["path,label,start,end", "v.mp4,a,0,1", "v.mp4,b,1,2", "w.mkv,a,0,1"]
    (tmp_path / "d.csv").write_text("\n".join(lines))
    report = check(index_clips(tmp_path / "d.csv", ("a", "b"), "given"), 10, 4, 1)
    assert [problem.kind for problem in report.problems] == ["duplicate"]
    assert report.problems[0].text.endswith("the same frames")
    assert report.frames == 30


def test_the_same_turned_video_is_not_the_same(tmp_path: Path) -> None:
    for name, turn in (("a", 0), ("b", 180)):
        encode(tmp_path / "train" / name / f"{name}.mp4", moving_frames(6), rotation=turn)
    assert check(index_clips(tmp_path), 10, 2, 1).problems == ()


def test_packing_by_command(good: Path, tmp_path: Path) -> None:
    code, out, _ = vidon("data", "shard", good, "--out", tmp_path / "s", "--size", "30kB", "--json")
    assert code == 0
    assert json.loads(out)["clips"] == 18
    code, out, _ = vidon("data", "check", tmp_path / "s", "--frames", "12", "--json")
    assert (code, json.loads(out)["clips"]) == (0, 18)
    code, _, err = vidon("data", "shard", good, "--out", tmp_path / "s", "--size", "many")
    assert (code, err.splitlines()[-1]) == (2, "error: --size 'many' is no size: write for example 256MB")
    code, _, err = vidon("data", "check", good, "--format", "kinetic")
    assert code == 2
    assert "format" in err


def test_numbered_files_in_each_folder_are_no_leak(tmp_path: Path) -> None:
    for place, seed in (("train/a", 1), ("train/b", 2), ("val/a", 3), ("val/b", 4)):
        encode(tmp_path / place / "000.mp4", moving_frames(12, seed=seed))
    code, out, _ = vidon("data", "check", tmp_path, "--distance", "0", "--json")
    found = json.loads(out)
    assert (code, found["ok"], found["leaks"]) == (0, True, [])
    assert found["same_names"] == ["names in two splits, whose videos of one class differ: 000 (1 in all)"]


def test_a_group_that_a_list_names_leaks_whatever_its_files_are_called(tmp_path: Path) -> None:
    for name, seed in (("x", 1), ("y", 2)):
        encode(tmp_path / f"{name}.mp4", moving_frames(12, seed=seed))
    (tmp_path / "d.csv").write_text("path,label,split,group\nx.mp4,a,train,g\ny.mp4,b,val,g\n")
    assert json.loads(vidon("data", "check", tmp_path / "d.csv", "--json")[1])["leaks"] == [
        "group g is in train and val"
    ]
