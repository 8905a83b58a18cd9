"""Shards hold the same clips as the files, survive being interrupted, and are read over http."""

import functools
import http.server
import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from tests.train.videos import encode, moving_frames
from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from toolkit.recipe import DataConfig, load_recipe
from train.data import shard
from train.data.clips import load_pictures
from train.data.formats.shards import expand
from train.data.index import Dataset, index_clips, index_data
from train.data.opening import read_clip
from train.data.shard import write_shards
from train.data.videos import VideoSource

PRE = Preprocess(size=(24, 32))
SIZE = 20_000


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Twelve clips with metadata, groups, and parts of a video."""
    root = tmp_path_factory.mktemp("files")
    lines = ["path,label,split,subject,start,end,scene"]
    for index in range(12):
        encode(root / f"v{index}.mp4", moving_frames(16 + index, seed=index), gop=6)
        split = ("train", "train", "val", "test")[index % 4]
        lines.append(f"v{index}.mp4,{'ab'[index % 2]},{split},s{index},{'0.5,1.5' if index == 4 else ','},{index % 3}")
    (root / "d.csv").write_text("\n".join(lines))
    return index_clips(root / "d.csv")


@pytest.fixture(scope="module")
def packed(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards")
    assert write_shards(data, out, SIZE).shards > 3
    return out


def assert_same(one: Dataset, two: Dataset) -> None:
    assert one.labels == two.labels
    assert one.meta() == two.meta()
    for split in ("train", "val", "test"):
        pairs = list(zip(one.split(split), two.split(split), strict=True))
        assert all((a.label, a.group, a.span, a.meta) == (b.label, b.group, b.span, b.meta) for a, b in pairs)
        sources = [VideoSource(data, split, PRE, 6) for data in (one, two)]
        places = range(len(sources[0]))
        first, second = (source.batch(places, 3, 2) for source in sources)
        assert torch.equal(first.pictures, second.pictures)
        assert torch.equal(first.meta["scene"], second.meta["scene"])


def test_shards_give_the_same_clips_as_the_files(data: Dataset, packed: Path) -> None:
    read = index_clips(packed)
    assert_same(data, read)
    assert all(path.stat().st_size < SIZE + 12_000 for path in packed.glob("*.tar"))
    files, shards = (load_pictures(one, "train", PRE, 6).batch(range(6), 0) for one in (data, read))
    assert torch.equal(files.pictures, shards.pictures)


def test_calibration_and_evaluation_read_shards_as_files(data: Dataset, packed: Path) -> None:
    read = index_clips(packed)
    for split in ("train", "val"):
        for one, two in zip(data.split(split), read.split(split), strict=True):
            assert np.array_equal(read_clip(one, PRE), read_clip(two, PRE))
            assert len(read_clip(two, PRE, 5)) == 5


def test_shards_without_our_index_are_read_too(data: Dataset, packed: Path, tmp_path: Path) -> None:
    for path in packed.glob("*.tar"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert_same(data, index_clips(tmp_path))
    assert len(index_clips(tmp_path / "train-{000000..000001}.tar").clips) >= 2


def test_webdataset_reads_our_shards(data: Dataset, packed: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    urls = sorted(str(path) for path in packed.glob("train-*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    clips = data.split("train")
    assert [json.loads(sample["json"])["label"] for sample in samples] == [clip.label for clip in clips]
    assert [sample["mp4"] for sample in samples] == [clip.path.read_bytes() for clip in clips]


def test_we_read_the_shards_of_webdataset(data: Dataset, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.ShardWriter(str(tmp_path / "train-%06d.tar"), maxcount=4, verbose=0) as writer:
        for index, clip in enumerate(data.clips[:8]):
            writer.write({"__key__": f"clip{index}", "mp4": clip.path.read_bytes(), "cls": index % 2})
    read = index_clips(tmp_path)
    assert read.labels == ("0", "1")
    assert {clip.split for clip in read.clips} == {"train"}
    one = VideoSource(read, "train", PRE, 6).batch([1], 0)
    with (tmp_path / "v.mp4").open("wb") as file:
        file.write(data.clips[1].path.read_bytes())
    assert one.pictures.shape == (1, 1, 6, 24, 32, 3)


@pytest.mark.parametrize("pattern", ["a-{000..012}.tar", "http://h/{0..1}/x-{08..11}.tar", "plain.tar"])
def test_patterns_expand_as_in_webdataset(pattern: str) -> None:
    shardlists = pytest.importorskip("webdataset.shardlists")
    assert expand(pattern) == shardlists.expand_urls(pattern)


def test_an_interrupted_packing_goes_on_and_ends_with_the_same_bytes(
    data: Dataset, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = shard._pack
    calls = []

    def cut(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 3:
            raise KeyboardInterrupt
        whole(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(shard, "_pack", cut)
    with pytest.raises(KeyboardInterrupt):
        write_shards(data, tmp_path, SIZE, workers=1)
    assert not (tmp_path / "index.json").exists()
    monkeypatch.setattr(shard, "_pack", whole)
    done = write_shards(data, tmp_path, SIZE)
    assert done.kept >= 2
    for path in (packed / "index.json", *packed.glob("*.tar")):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    assert write_shards(data, tmp_path, SIZE).kept == done.shards


def test_a_failure_in_the_middle_of_a_shard_leaves_no_shard(
    data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard, "_write", broken)
    with pytest.raises(UserError, match=r"cannot write .*\.tar: no space left"):
        write_shards(data, tmp_path, SIZE)
    assert list(tmp_path.glob("*.tar")) == []


def test_shards_of_other_data_are_not_mixed(data: Dataset, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"shard of other data or of another --size"):
        write_shards(data, packed, 2 * SIZE)
    (tmp_path / "train-000000.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"choose another --out"):
        write_shards(data, tmp_path, SIZE)


def test_missing_videos_are_left_out_and_many_are_an_error(data: Dataset, tmp_path: Path) -> None:
    lines = [f"{clip.path},{clip.label},train" for clip in data.clips]
    (tmp_path / "d.csv").write_text("\n".join(["path,label,split", *lines, "gone.mp4,a,train"]))
    done = write_shards(index_clips(tmp_path / "d.csv"), tmp_path / "out", SIZE)
    assert done.clips == 12
    assert [Path(name).name for name in done.missing] == ["gone.mp4"]
    (tmp_path / "e.csv").write_text("\n".join(["path,label", *lines[:1], "gone.mp4,b"]).replace(",train", ""))
    with pytest.raises(UserError, match=r"1 of 2 videos do not exist"):
        write_shards(index_clips(tmp_path / "e.csv"), tmp_path / "out2", SIZE)


def test_a_truncated_shard_is_named(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "index.json").write_bytes((packed / "index.json").read_bytes())
    for path in packed.glob("*.tar"):
        (tmp_path / path.name).write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"broken; the first: shard .*is truncated"):
        load_pictures(index_clips(tmp_path), "train", PRE, 6)
    (tmp_path / "index.json").unlink()
    with pytest.raises(UserError, match="is damaged or no tar"):
        index_clips(tmp_path)


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves files, and answers ranges as a real object store does."""

    ranges = True
    seen: list[str]

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.seen.append(asked or "")
        if not self.ranges or asked is None:
            super().do_GET()
            return
        first, last = (int(part) for part in asked.removeprefix("bytes=").split("-"))
        data = Path(self.translate_path(self.path)).read_bytes()[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(params=[True, False], ids=["ranges", "whole files"])
def server(packed: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    kind = type("_Server", (_Ranges,), {"ranges": request.param, "seen": []})
    handler = functools.partial(kind, directory=str(packed))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()
        thread.join()
    assert any(kind.seen)  # type: ignore[attr-defined]


def test_remote_shards_give_the_same_clips(data: Dataset, server: str, tmp_path: Path) -> None:
    assert_same(data, index_clips(Path(server)))
    (tmp_path / "r.toml").write_text(f'[data]\nroot = "{server}/index.json"\n')
    assert len(index_data(load_recipe(tmp_path / "r.toml").data).clips) == 12
    tars = index_data(DataConfig(root=Path(f"{server}/train-{{000000..000001}}.tar")), data.labels)
    source = VideoSource(tars, "train", PRE, 6, random=False)
    local = VideoSource(data, "train", PRE, 6, random=False)
    assert torch.equal(source.batch([0, 1], 0).pictures, local.batch([0, 1], 0).pictures)
    with pytest.raises(UserError, match="the server says 404"):
        index_clips(Path(f"{server}/nothing/index.json"))


def test_a_server_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("train.data.remote._WAIT_S", 0.0)
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/index\.json cannot be reached .*Connection refused"):
        index_clips(Path("http://127.0.0.1:9"))


def test_a_shard_holds_a_description_beside_each_video(packed: Path) -> None:
    with tarfile.open(packed / "train-000000.tar") as tar:
        names = tar.getnames()
    assert names[:2] == ["00000000.json", "00000000.mp4"]


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folders of frames as a COCO list has them, with boxes; the category "never" has none."""
    root = tmp_path_factory.mktemp("frames")
    images: list[dict[str, Any]] = []
    boxes: list[dict[str, Any]] = []
    for number in range(3):
        (root / f"v{number}").mkdir()
        for index, frame in enumerate(moving_frames(9 + number, seed=number)):
            name = f"v{number}/{index:03d}.{'png' if number else 'JPG'}"
            suffix = ".png" if number else ".jpg"
            (root / name).write_bytes(cv2.imencode(suffix, frame)[1].tobytes())
            split = ("train", "train", "val")[number]
            images.append({"id": len(images), "file_name": name, "split": split})
            if index % 2:
                box = {"id": len(boxes), "image_id": images[-1]["id"], "category_id": 1 + number % 2}
                boxes.append({**box, "bbox": [4 + index, 5, 20, 16]})
    names = [{"id": index + 1, "name": name} for index, name in enumerate(("car", "bottle", "never"))]
    raw = {"images": images, "annotations": boxes, "categories": names}
    (root / "list.json").write_text(json.dumps(raw))
    return root / "list.json"


def same_boxes(one: Dataset, two: Dataset) -> None:
    for split in ("train", "val"):
        places = range(len(one.split(split)))
        first, second = (VideoSource(data, split, PRE, 6).batch(places, 5, 2) for data in (one, two))
        assert torch.equal(first.pictures, second.pictures)
        assert first.boxes is not None
        assert second.boxes is not None
        assert bool((first.box_labels != -1).any())  # type: ignore[union-attr]
        assert torch.equal(first.boxes, second.boxes)
        assert torch.equal(first.box_labels, second.box_labels)  # type: ignore[arg-type]


def test_frames_as_pictures_are_packed_with_their_boxes(pictured: Path, tmp_path: Path) -> None:
    data, out = index_clips(pictured), tmp_path / "s"
    packed = write_shards(data, out, 1 << 20)
    assert (packed.clips, packed.shards, packed.missing) == (3, 2, ())
    read = index_clips(out)
    assert read.labels == data.labels == ("bottle", "car", "never")
    assert [clip.pictures for clip in read.clips] == [9, 10, 11]
    assert read.clips[1].name == f"{out}/train-000000.tar:00000001"
    same_boxes(data, read)
    again = write_shards(read, tmp_path / "again", 1 << 20)  # shards of shards are the same bytes
    for tar in out.glob("*.tar"):
        assert (again.index.parent / tar.name).read_bytes() == tar.read_bytes()
    for path in out.glob("*.tar"):  # without our index, as other people's
        (tmp_path / "bare").mkdir(exist_ok=True)
        (tmp_path / "bare" / path.name).write_bytes(path.read_bytes())
    same_boxes(data, index_clips(tmp_path / "bare", data.labels))


def test_webdataset_reads_the_frames_of_our_shards(pictured: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    write_shards(index_clips(pictured), tmp_path, 1 << 20)
    url = str(tmp_path / "train-000000.tar")
    samples = list(webdataset.WebDataset(url, shardshuffle=False, empty_check=False))
    assert len(samples) == 2
    for number, (sample, suffix) in enumerate(zip(samples, ("jpg", "png"), strict=True)):
        files = sorted((pictured.parent / f"v{number}").iterdir())
        assert [sample[f"{n:06d}.{suffix}"] for n in range(9 + number)] == [path.read_bytes() for path in files]
        assert json.loads(sample["json"])["annotated"] == list(range(9 + number))


def test_remote_frames_come_in_one_request_a_window(pictured: Path, tmp_path: Path) -> None:
    data = index_clips(pictured)
    write_shards(data, tmp_path, 1 << 20)
    kind = type("_Server", (_Ranges,), {"ranges": True, "seen": []})
    handler = functools.partial(kind, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        try:
            remote = index_clips(Path(f"http://127.0.0.1:{running.server_address[1]}"))
            before = len(kind.seen)  # type: ignore[attr-defined]
            batch = VideoSource(remote, "train", PRE, 6).batch([0, 1], 5)
        finally:
            running.shutdown()
            thread.join()
    assert len(kind.seen) == before + 2  # type: ignore[attr-defined]
    assert torch.equal(batch.pictures, VideoSource(data, "train", PRE, 6).batch([0, 1], 5).pictures)


def test_what_cannot_be_packed_of_pictures_is_named(pictured: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(pictured.parent, tmp_path / "d"))
    (root / "v2" / "010.png").unlink()
    data = index_clips(root / "list.json")
    assert write_shards(data, tmp_path / "s", 1 << 20, broken_share=0.5).missing == (str(root / "v2"),)
    (tmp_path / "s" / "train-000000.tar").write_bytes((tmp_path / "s" / "train-000000.tar").read_bytes()[:3000])
    with pytest.raises(UserError, match=r"shard .*train-000000\.tar is truncated: .* is cut off"):
        VideoSource(index_clips(tmp_path / "s"), "train", PRE, 6, broken_share=1).batch([1], 0)
    raw = json.loads((root / "list.json").read_text())
    raw["images"][0]["file_name"] = "v0/000.gif"
    (root / "gif.json").write_text(json.dumps(raw))
    with pytest.raises(UserError, match=r"v0/000\.gif is not packed: pictures are \.bmp \.jpeg"):
        write_shards(index_clips(root / "gif.json"), tmp_path / "g", 1 << 20)
