"""Reading over http goes on where it broke off, waits longer each time, and gives up with what happened."""

import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks.malformed_lists import Served, packed, serve
from toolkit.errors import UserError
from toolkit.recipe import DataConfig
from train.data.index import index_data
from train.data.opening import open_clip
from train.data.remote import _TRIES, Remote, fetch

CONTENT = np.random.default_rng(0).bytes(300_000)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("train.data.remote._WAIT_S", 0.0)
    yield
    serve(b"")[0]  # the last one of a test ends here


def served(content: bytes, *faults: str, name: str = "train.tar") -> tuple[str, type[Served]]:
    server, kind = serve(content, *faults)
    return f"http://127.0.0.1:{server.server_address[1]}/{name}", kind


def starts(kind: type[Served]) -> list[int]:
    return [int(asked.removeprefix("bytes=").partition("-")[0] or 0) for asked in kind.asked]


def test_what_has_come_is_not_asked_for_again() -> None:
    url, kind = served(CONTENT, "cut", "503", "cut", "drop")
    assert fetch(url) == CONTENT
    assert starts(kind) == [0, 150_000, 150_000, 225_000, 225_000]


def test_a_part_goes_on_within_the_part() -> None:
    url, kind = served(CONTENT, "cut", "cut")
    assert fetch(url, 1000, 8000) == CONTENT[1000:9000]
    assert kind.asked == ["bytes=1000-8999", "bytes=5000-8999", "bytes=7000-8999"]


@pytest.mark.parametrize("seed", range(6))
def test_whatever_goes_wrong_the_bytes_are_the_same(seed: int) -> None:
    rng = np.random.default_rng(seed)
    faults: list[str] = []
    for _ in range(5):  # more in a row that bring nothing would be the end
        faults += [*rng.choice(["wholecut", "drop", "500", "503", "429"], rng.integers(1, _TRIES)).tolist(), "cut"]
    url, kind = served(CONTENT, *faults)
    with Remote(url) as file:
        assert b"".join(iter(lambda: file.read(int(rng.integers(1, 50_000))), b"")) == CONTENT
    assert len(kind.asked) > 8


def test_a_server_without_ranges_sends_all_again_and_only_the_rest_is_taken() -> None:
    url, kind = served(CONTENT, "wholecut", "whole")
    assert fetch(url) == CONTENT
    assert starts(kind) == [0, 150_000]
    url, _ = served(CONTENT, "whole")
    assert fetch(url, 777, 99) == CONTENT[777:876]


def test_tries_that_bring_nothing_are_counted_and_named() -> None:
    url, kind = served(CONTENT, "cut", "drop!")
    with pytest.raises(UserError, match=rf"train\.tar broke off at byte 150000 of 300000, after {_TRIES} tries"):
        fetch(url)
    assert starts(kind) == [0] + [150_000] * _TRIES
    url, kind = served(CONTENT, "502!")
    with pytest.raises(UserError, match=rf"cannot be had after {_TRIES} tries .the server says 502"):
        fetch(url)
    assert len(kind.asked) == _TRIES
    url, kind = served(CONTENT, "410!")
    with pytest.raises(UserError, match="the server says 410"):
        fetch(url)
    assert len(kind.asked) == 1  # gone for good


def test_each_wait_is_longer_than_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.data.remote._WAIT_S", 0.05)
    times: list[float] = []
    url, kind = served(CONTENT, "500!")

    def send_error(self: Served, *words: object) -> None:
        times.append(time.monotonic())
        super(Served, self).send_error(*words)  # type: ignore[arg-type]

    kind.send_error = send_error  # type: ignore[method-assign,assignment]
    with pytest.raises(UserError, match="500"):
        fetch(url)
    waits = [b - a for a, b in pairwise(times)]
    assert len(waits) == _TRIES - 1
    assert all(later > 1.4 * earlier for earlier, later in pairwise(waits))


def test_a_file_that_changes_in_the_middle_is_refused() -> None:
    url, kind = served(CONTENT, "cut")
    marks = iter(("one", "two", "three"))

    def end_headers(self: Served) -> None:
        self.send_header("ETag", next(marks))
        super(Served, self).end_headers()

    kind.end_headers = end_headers  # type: ignore[method-assign,assignment]
    with pytest.raises(UserError, match=r"train\.tar has changed on the server while it was read: run again"):
        fetch(url)


def test_a_url_may_hold_spaces_other_letters_and_a_signature() -> None:
    url, _ = served(packed(), name="a b/\u00e9.tar?signature=1%2B2")
    data = index_data(DataConfig(root=Path(url)))
    assert [clip.label for clip in data.clips] == ["a", "b"]
    with open_clip(data.clips[1]) as video:
        assert video.ticks(10) == 8


def test_a_shard_that_ends_too_early_is_damaged_not_tried_for_ever() -> None:
    url, kind = served(packed()[:9000])
    with pytest.raises(UserError, match="is damaged or no tar"):
        index_data(DataConfig(root=Path(url)))
    assert len(kind.asked) <= 2  # once more to see what it is
