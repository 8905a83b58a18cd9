"""A reader sees the old file or the new one, never a mixture."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from toolkit import files
from toolkit.errors import UserError


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = files.write_text(tmp_path / "a.txt", "old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"a\.txt: no space left on the disk"):
        files.write_text(target, "new")
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_failed_folder_keeps_the_old_one(tmp_path: Path) -> None:
    with files.fresh_dir(tmp_path / "out") as staging:
        (staging / "x").write_text("old")
    with pytest.raises(RuntimeError), files.fresh_dir(tmp_path / "out") as staging:
        (staging / "x").write_text("new")
        raise RuntimeError
    assert (tmp_path / "out" / "x").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    for text in ("one", "two"):
        with files.fresh_dir(tmp_path / "out") as staging:
            (staging / text).write_text(text)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["two"]


def test_ctrl_c_while_building_a_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), files.fresh_dir(tmp_path / "out"):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_clear_line() -> None:
    with (
        pytest.raises(UserError, match="no space left"),
        files.writing(Path("/dev/full")),
        open("/dev/full", "w") as full,
    ):
        full.write("x" * 100_000)


def test_an_output_below_a_file_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"not a folder|expected"):
        files.writable_dir(tmp_path / "file" / "out")


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_each_trouble_of_the_disk_says_what_to_do(code: int) -> None:
    with pytest.raises(UserError, match=r"cannot write out: .*(folder|space)"), files.writing(Path("out")):
        raise OSError(code, "x")


def test_kill_9_at_any_moment_never_leaves_half_a_file(tmp_path: Path) -> None:
    target = tmp_path / "weights.bin"
    code = (
        "import sys; from pathlib import Path; from toolkit.files import write_bytes\n"
        "print('ready', flush=True)\n"
        "for i in range(10**9): write_bytes(Path(sys.argv[1]), bytes([i % 256]) * 300_000)"
    )
    root = Path(__file__).parents[2]
    for delay_s in (0.02, 0.05, 0.11):
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", code, str(target)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(delay_s)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        if target.exists():
            data = target.read_bytes()
            assert len(data) == 300_000
            assert len(set(data)) == 1


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_folder_that_the_system_refuses_is_one_clear_line() -> None:
    with pytest.raises(UserError, match="cannot write /proc/no-such: the system does not let"):
        files.writable_dir(Path("/proc/no-such"))


def test_a_name_that_is_too_long_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the name is too long: choose a shorter one"):
        files.write_text(tmp_path / ("x" * 300), "text")


def test_what_a_killed_process_left_is_cleared_and_what_a_living_one_makes_is_not(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    target, long_ago = tmp_path / "a[1].vidon", time.time() - 3600
    torn, other = tmp_path / ".a[1].vidon.ab12cd34.part", tmp_path / ".b.vidon.ab12cd34.part"
    for folder in (torn, other):
        folder.mkdir()
        (folder / "half").write_text("of a bundle")
        os.utime(folder, (long_ago, long_ago))
    with files.fresh_dir(target) as mine:
        assert not torn.exists()
        os.utime(mine, (long_ago, long_ago))
        with files.fresh_dir(target) as second:
            (second / "whole").write_text("2")
        assert mine.exists()
        (mine / "whole").write_text("1")
    assert (target / "whole").read_text() == "1"
    assert sorted(tmp_path.iterdir()) == [other, target]


def test_a_folder_that_was_set_aside_when_the_power_went_comes_back(tmp_path: Path) -> None:
    aside = tmp_path / ".a.vidon.old.ab12cd34.part" / "old"
    aside.mkdir(parents=True)
    (aside / "whole").write_text("old")
    with pytest.raises(RuntimeError), files.fresh_dir(tmp_path / "a.vidon"):
        raise RuntimeError("the new one fails")
    assert (tmp_path / "a.vidon" / "whole").read_text() == "old"


@pytest.mark.parametrize("name", [".door.backup", ".door.original", ".door.vidon.ab12cd34.part"])
def test_hidden_folders_of_others_are_left_alone(tmp_path: Path, name: str) -> None:
    """A user's own, or what is being made for ``door.vidon`` while ``door`` is written."""
    theirs, long_ago = tmp_path / name / "old", time.time() - 3600
    theirs.mkdir(parents=True)
    (theirs / "precious").write_text("kept")
    os.utime(theirs.parent, (long_ago, long_ago))
    with files.fresh_dir(tmp_path / "door") as staging:
        (staging / "whole").write_text("new")
    assert (theirs / "precious").read_text() == "kept"


def test_proving_that_a_folder_can_be_written_leaves_nothing_that_was_not_there(tmp_path: Path) -> None:
    files.prove_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    files.prove_writable(tmp_path / "mine")
    files.writable_file(tmp_path / "mine" / "deep" / "x.json")
    assert list(tmp_path.rglob("*")) == [tmp_path / "mine"]
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file"):
        files.prove_writable(tmp_path / "new" / ".." / "file" / "out")
