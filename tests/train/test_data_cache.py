"""A check remembers what it has seen: it goes on after a kill, decodes only what is new, and finds the same."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.train.test_data_check import vidon
from tests.train.test_data_relations import filmed
from tests.train.videos import encode, moving_frames
from toolkit.errors import UserError
from train.data.clip import Clip
from train.data.examine import Seen, examine
from train.data.fingerprints import Fingerprints, fingerprint_key

_CODE = "import sys; from toolkit.__main__ import main; sys.argv[0] = 'vidon'; main()"


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """Six clips, of which the last is a part of the first."""
    root = tmp_path / "films"
    film = filmed(0)
    for number in range(5):
        encode(root / "train" / "ab"[number % 2] / f"{number}.mp4", filmed(number), fps=25)
    encode(root / "train" / "a" / "part.mp4", film[20:60], fps=25, options={"crf": "30"})
    return root


def checked(root: Path, cache: Path | None, *more: str) -> tuple[int, dict[str, object], str]:
    options = [] if cache is None else ["--cache", str(cache)]
    code, out, err = vidon("data", "check", root, *options, "--workers", "1", "--json", *more)
    return code, json.loads(out), err


def test_what_comes_back_is_what_was_seen(films: Path, tmp_path: Path) -> None:
    clip = Clip(films / "train" / "a" / "0.mp4", "a", "train", "0")
    seen, key = examine(clip, 10, True), fingerprint_key(clip, 10, True)
    with Fingerprints.open(tmp_path / "cache") as known:
        assert known.get(key) is None
        assert known.put(key, seen).trace is None
        known.put("broken", Seen(wrong="damaged"))
    with Fingerprints.open(tmp_path / "cache") as known:
        assert known.get("broken") is None
        again, [trace] = known.get(key), known.traces([key])
    assert again is not None
    assert (again.frames, again.pictures, again.file, again.content) == (75, 30, seen.file, seen.content)
    assert again.look is not None
    assert seen.look is not None
    assert trace is not None
    assert seen.trace is not None
    for name in ("still", "motion", "mirrored"):
        assert np.array_equal(getattr(again.look, name), getattr(seen.look, name))
    assert np.array_equal(trace.still, seen.trace.still)
    assert np.array_equal(trace.moving, seen.trace.moving)
    assert (trace.scale, trace.borders) == (seen.trace.scale, seen.trace.borders)


def test_only_what_is_new_or_changed_is_decoded_again(films: Path, tmp_path: Path) -> None:
    plain = checked(films, None)
    assert plain[1]["near_duplicates"]
    assert checked(films, tmp_path / "cache") == plain
    one = films / "train" / "a" / "0.mp4"
    before = one.stat()
    one.write_bytes(bytes(before.st_size))  # nobody would know without decoding: it is not decoded
    os.utime(one, ns=(before.st_atime_ns, before.st_mtime_ns))
    code, found, err = checked(films, tmp_path / "cache")
    assert (code, found, err) == plain
    assert checked(films, tmp_path / "cache", "--fps", "5")[1]["broken"]  # pictures are counted anew
    os.utime(one, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    encode(films / "train" / "a" / "new.mp4", filmed(9), fps=25)
    code, found, err = checked(films, tmp_path / "cache")
    assert code == 2
    assert "5 clips are known, 2 are new" in err
    assert len(str(found["broken"]).split("cannot be read")) == 2
    assert found["clips"] == 7


def test_a_broken_clip_is_looked_at_again(films: Path, tmp_path: Path) -> None:
    one = films / "train" / "a" / "0.mp4"
    whole, before = one.read_bytes(), one.stat()
    one.write_bytes(bytes(len(whole)))
    os.utime(one, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert checked(films, tmp_path / "cache")[1]["broken"]
    one.write_bytes(whole)  # as when a disk was away for a while
    os.utime(one, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert checked(films, tmp_path / "cache")[1]["broken"] == []


def _interrupted(how: signal.Signals, words: list[str], cache: Path) -> tuple[int, int, str, str]:
    """Clips kept when the check was ended, its exit code, and what it said."""
    running = subprocess.Popen([sys.executable, "-P", "-c", _CODE, *words], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip
    done, end_s = 0, time.monotonic() + 60
    while not done and running.poll() is None and time.monotonic() < end_s:
        time.sleep(0.02)
        if (cache / "fingerprints.sqlite").exists():
            base = sqlite3.connect(cache / "fingerprints.sqlite", timeout=60)
            tables = base.execute("select count(*) from sqlite_master").fetchone()[0]
            done = base.execute("select count(*) from seen").fetchone()[0] if tables else 0
            base.close()
    if running.poll() is None:
        os.killpg(running.pid, how)
    out, err = running.communicate(timeout=60)
    return done, running.returncode, out, err


@pytest.mark.parametrize(("how", "workers"), [(signal.SIGKILL, "1"), (signal.SIGINT, "2")])
def test_an_interrupted_check_goes_on(how: signal.Signals, workers: str, tmp_path: Path) -> None:
    """Ctrl-C reaches the workers too: all end without a word of theirs."""
    root, cache = tmp_path / "data", tmp_path / "cache"
    video = encode(tmp_path / "v.mp4", moving_frames(30, 96, 128))
    for number in range(600):
        path = root / "train" / "ab"[number % 2] / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, path)
    words = ["data", "check", str(root), "--cache", str(cache), "--workers", workers, "--json",
             "--distance", "0"]  # fmt: skip
    for _ in range(4):  # on a busy machine a check may end before it is seen at work
        shutil.rmtree(cache, ignore_errors=True)
        done, code, out, err = _interrupted(how, words, cache)
        if code != 2:
            break
    assert (code, out) == ((130, "") if how == signal.SIGINT else (-9, ""))
    assert "Traceback" not in err
    code, found, said = checked(root, cache, "--distance", "0")
    assert (code, found["clips"], found["frames"]) == (2, 600, 18000)
    known = int(said.partition(" clips are known")[0].rpartition("\n")[2])
    assert done <= known < 600
    assert f"{known} clips are known, {600 - known} are new" in said


@pytest.mark.parametrize("spoilt", [b"a letter, not a database", b"SQLite format 3\0" + bytes(99)])
def test_a_damaged_cache_is_one_line(spoilt: bytes, films: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "fingerprints.sqlite").write_bytes(spoilt)
    code, out, err = vidon("data", "check", films, "--cache", tmp_path / "cache")
    assert (code, out) == (2, "")
    assert "fingerprints.sqlite cannot be used (file is not a database): remove it" in err
    assert err.count("\n") == 1


def test_a_cache_that_cannot_be_written_is_one_line(films: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = vidon("data", "check", films, "--cache", tmp_path / "file")
    assert code == 2
    assert err.startswith("error: cannot write ")
    assert err.count("\n") == 1


def test_the_disk_is_full(films: Path, tmp_path: Path) -> None:
    """SQLite is told that no more than a few pages are free, and what was kept before stays."""
    clip = Clip(films / "train" / "a" / "0.mp4", "a", "train", "0")
    seen = examine(clip, 10, True)
    with Fingerprints.open(tmp_path / "cache") as known:
        known.put("0", seen)
    with pytest.raises(UserError, match=r"fingerprints\.sqlite cannot be used \(database or disk is full\)"):  # noqa: SIM117
        with Fingerprints.open(tmp_path / "cache") as known:
            known._base.execute("pragma max_page_count = 40")
            for number in range(99):
                known.put(str(number), seen)
    with Fingerprints.open(tmp_path / "cache") as known:
        assert known.get("0") is not None
        assert known.get("98") is None
