"""Clips decoded on demand are bit for bit what the board sees, whatever the file; broken ones are replaced."""

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np
import pytest
import torch

from tests.train.videos import encode, moving_frames, sound_only
from toolkit.errors import UnavailableDevice, UserError
from toolkit.preprocess import Preprocess
from toolkit.recipe import DataConfig
from toolkit.video import read_pictures
from train.data.batch import Batch
from train.data.clip import Clip
from train.data.clips import load_pictures
from train.data.decode import open_video
from train.data.index import Dataset, index_clips
from train.data.sources import open_source
from train.data.videos import VideoSource
from train.loop.buffers import Buffers
from train.loop.feed import Feed, Order, Part

PRE = Preprocess(size=(24, 32))
UNEVEN = [0.1 + index / 10 + 0.04 * float(np.sin(index * 7)) for index in range(40)]
KINDS: dict[str, dict[str, Any]] = {
    "h264.mp4": {},
    "h264.mkv": {},
    "vp9.webm": {"codec": "libvpx-vp9"},
    "hidden_frames.webm": {"codec": "libvpx", "options": {"auto-alt-ref": "1", "lag-in-frames": "16"}},
    "b_frames.avi": {"codec": "mpeg4", "options": {"bf": "2"}},
    "mpeg2.mpg": {"codec": "mpeg2video", "fps": 25},
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "10_bit.mp4": {"pixels": "yuv420p10le"},
    "grey.mp4": {"pixels": "gray"},
    "turned_90.mp4": {"rotation": 90},
    "turned_180.mp4": {"rotation": 180},
    "turned_back.mkv": {"rotation": -90},
    "uneven.mp4": {"times_s": UNEVEN},
    "uneven.mkv": {"times_s": UNEVEN},
    "late_start.mp4": {"times_s": [3 + index / 10 for index in range(40)]},
    "open_gop.mp4": {"options": {"x264-params": "open-gop=1:keyint=8:bframes=3:scenecut=0"}, "gop": 8},
    "odd.mp4": {"pixels": "yuv444p"},
}


@pytest.mark.parametrize("name", KINDS)
def test_any_window_is_bit_equal_to_what_the_board_sees(name: str, tmp_path: Path) -> None:
    height, width = (47, 63) if name == "odd.mp4" else (48, 64)
    path = encode(tmp_path / name, moving_frames(40, height, width), **KINDS[name])
    for fps in (10.0, 7.3, 25.0):
        preprocess = PRE.model_copy(update={"fps": fps})
        board = read_pictures(path, preprocess)
        with open_video(path, name) as video:
            assert video.ticks(fps) == len(board)
            timeline = video.timeline
        for start in range(0, len(board) - 8, 7):
            with open_video(path, name, timeline) as video:
                ours = video.pictures(range(start, start + 8), preprocess).pictures
            assert np.array_equal(ours, board[start : start + 8]), f"{fps} from {start}"


def test_a_turned_video_is_upright(tmp_path: Path) -> None:
    frames = moving_frames(6)
    plain = encode(tmp_path / "plain.mp4", frames, options={"crf": "4"})
    sideways = [np.rot90(frame, -1) for frame in frames]
    turned = encode(tmp_path / "turned.mp4", sideways, rotation=90, options={"crf": "4"})
    seen = [read_pictures(path, PRE) for path in (plain, turned)]
    assert np.abs(seen[0].astype(int) - seen[1]).mean() < 8
    with open_video(turned, "turned") as video:
        assert np.array_equal(video.pictures(range(6), PRE).pictures, seen[1])


def test_a_late_window_decodes_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "long.mp4", moving_frames(300), gop=10)
    with open_video(path, "long") as video:
        timeline = video.timeline
    with open_video(path, "long", timeline) as video:
        decoded: list[Any] = []
        whole = video._decoded

        def counted() -> Iterator[Any]:
            for frame in whole():
                decoded.append(frame)
                yield frame

        monkeypatch.setattr(video, "_decoded", counted)
        video.pictures(range(250, 258), PRE)
    assert 8 <= len(decoded) < 30


def test_a_part_of_a_video_is_the_same_from_both_decoders(tmp_path: Path) -> None:
    path = encode(tmp_path / "v.mp4", moving_frames(60))
    board = read_pictures(path, PRE, span=(1.45, 3.0))
    assert len(board) == 15
    with open_video(path, "v") as video:
        assert video.ticks(PRE.fps, (1.45, 3.0)) == 15
        assert np.array_equal(video.pictures(range(15), PRE, (1.45, 3.0)).pictures, board)
    with pytest.raises(UserError, match="no frame between 9 and 10"), open_video(path, "v") as video:
        video.ticks(PRE.fps, (9, 10))
    with pytest.raises(UserError, match="no frame between 9 and 10"):
        read_pictures(path, PRE, span=(9, 10))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("videos")
    for index in range(8):
        for label in ("a", "b"):
            frames = moving_frames(20 + index, seed=index)
            encode(root / "train" / label / f"{label}{index}.mp4", frames, gop=6)
    return index_clips(root)


def test_a_batch_depends_on_the_seed_and_the_clip_alone(data: Dataset) -> None:
    source = VideoSource(data, "train", PRE, 6)
    whole = source.batch(range(8), 5, 2)
    assert whole.pictures.shape == (8, 2, 6, 24, 32, 3)
    part = pickle.loads(pickle.dumps(source)).batch([6, 3], 5, 2)
    assert torch.equal(part.pictures, whole.pictures[[6, 3]])
    assert torch.equal(source.batch(range(8), 5, 2).pictures, whole.pictures)
    assert not torch.equal(source.batch(range(8), 6, 2).pictures, whole.pictures)
    assert not torch.equal(whole.pictures[:, 0], whole.pictures[:, 1])


def test_every_window_of_a_training_clip_is_what_the_board_sees_there(data: Dataset) -> None:
    source = VideoSource(data, "train", PRE, 6, stride=2)
    batch = source.batch(range(len(source)), 1, 2)
    for index, clip in enumerate(source.clips):
        board = read_pictures(clip.path, PRE)
        for view in batch.pictures[index].numpy():
            assert any(np.array_equal(view, board[s : s + 11 : 2]) for s in range(len(board) - 10))


def test_a_clip_that_is_too_short_repeats_its_last_picture_in_one_view_and_in_two(data: Dataset) -> None:
    source = VideoSource(data, "train", PRE, 30, random=False)
    board = read_pictures(source.clips[3].path, PRE)
    want = np.concatenate([board, np.repeat(board[-1:], 30 - len(board), 0)])
    for views in (1, 2):
        for view in source.batch([3], 0, views).pictures[0]:
            assert np.array_equal(view, want)


def test_timelines_are_read_once_for_all_workers(data: Dataset) -> None:
    source = VideoSource(data, "train", PRE, 6)
    first = source.draw([0, 3], 7)
    assert sorted(first.timelines) == [0, 3]
    assert source.known([0, 3]) == {}
    source.judge(first)
    assert sorted(source.known([0, 2, 3])) == [0, 3]
    again = pickle.loads(pickle.dumps(source)).draw([0, 2], 7, known=source.known([0, 2]))
    assert sorted(again.timelines) == [2]
    order = Order(len(source), 4, 2, 0, 1, 1, 0)
    alone, shared = (Feed(VideoSource(data, "train", PRE, 6), order, 0, 1, n, torch.device("cpu")) for n in (0, 2))
    for _ in range(order.total):
        one, two = alone.next()[1], shared.next()[1]
        assert torch.equal(one.pictures, two.pictures)
        assert torch.equal(one.labels, two.labels)
    shared.close()


def test_a_file_that_is_known_is_opened_without_decoding_and_decodes_the_same(tmp_path: Path) -> None:
    deep = {"x264-params": "bframes=6:b-pyramid=normal:b-adapt=0:ref=5"}
    path = encode(tmp_path / "deep.mp4", moving_frames(60), gop=60, options=deep)
    with open_video(path, "deep") as video:
        timeline, whole = video.timeline, video.pictures(range(60), PRE)
    with av.open(str(path)) as container:
        depth = container.streams.video[0].codec_context.reorder_depth
    assert timeline.probe is not None
    assert timeline.probe.reorder == depth == 2
    with open_video(path, "deep", timeline) as video:
        context = video._stream.codec_context
        assert (context.pix_fmt, context.reorder_depth) == (None, depth)  # nothing was decoded to find the format
        again = video.pictures(range(60), PRE)
    assert np.array_equal(again.pictures, whole.pictures)
    assert np.array_equal(again.frames, whole.frames)
    with open_video(encode(tmp_path / "v.mkv", moving_frames(9)), "v") as video:
        assert video.timeline.probe is None  # where nobody has looked whether probing decides more


def test_a_batch_or_a_part_of_it_that_is_kept_keeps_its_memory(data: Dataset) -> None:
    order = Order(len(data.split("train")), 4, 6, 0, 1, 1, 0)
    alone, shared = (Feed(VideoSource(data, "train", PRE, 6), order, 0, 1, n, torch.device("cpu")) for n in (0, 2))
    kinds: list[Callable[[Batch], Any]] = [
        lambda batch: batch.pictures, lambda batch: batch.first[1:], lambda batch: batch.pictures.numpy()[:, 0, 2],
    ]  # fmt: skip
    held = [kinds[step % 3](shared.next()[1]) for step in range(order.total)]
    shared.close()
    for step, have in enumerate(held):
        assert np.array_equal(np.asarray(kinds[step % 3](alone.next()[1])), np.asarray(have)), f"step {step}"


def test_memory_of_batches_that_are_gone_is_used_again(data: Dataset) -> None:
    order = Order(len(data.split("train")), 3, 8, 0, 1, 1, 0)
    feed = Feed(VideoSource(data, "train", PRE, 6), order, 0, 1, 2, torch.device("cpu"))
    places = {feed.next()[1].pictures.data_ptr() for _ in range(order.total)}
    feed.close()
    assert order.total == 40
    assert len(places) <= 6  # two ahead for each worker, one in use and one that is handed out


def test_a_buffer_is_lent_to_one_batch_at_a_time() -> None:
    buffers = Buffers(2, (3, 1, 2, 4, 4, 3))
    assert buffers.take(4) is None  # too large
    first, second = buffers.take(3), buffers.take(1)
    assert (first, second, buffers.take(1)) == (0, 1, None)
    array = buffers.lend(0, 2)
    assert array.shape == (2, 1, 2, 4, 4, 3)
    view = torch.from_numpy(array)[1, 0]
    del array
    assert buffers.take(1) is None
    del view
    assert (buffers.take(3), buffers.take(1)) == (0, None)


def test_validation_clips_from_files_and_from_memory_are_the_same(data: Dataset) -> None:
    memory, files = load_pictures(data, "train", PRE, 6), VideoSource(data, "train", PRE, 6, random=False)
    one, two = memory.batch(range(16), 0), files.batch(range(16), 0)
    assert torch.equal(one.pictures, two.pictures)
    assert torch.equal(one.labels, two.labels)
    spread = files.batch([0], 0, 3).pictures[0]
    board = read_pictures(data.clips[0].path, PRE)
    assert np.array_equal(spread[0], board[:6])
    assert np.array_equal(spread[2], board[-6:])


def test_views_in_memory_are_different_windows_where_there_is_room(data: Dataset) -> None:
    held = load_pictures(data, "train", PRE, 6, hold=64)
    assert held.pictures.shape[1] == 27
    batch = held.batch(range(16), 3, 4)
    assert batch.pictures.shape == (16, 4, 6, 24, 32, 3)
    assert torch.equal(batch.pictures[5], held.batch([5], 3, 4).pictures[0])
    board = read_pictures(Path(held.names[0]), PRE)
    starts = {
        next(s for s in range(len(board) - 5) if np.array_equal(view, board[s : s + 6]))
        for seed in range(6)
        for view in held.batch([0], seed, 4).pictures[0].numpy()
    }
    assert len(starts) > 5


def test_a_codec_that_opencv_lacks_is_decoded_all_the_same(tmp_path: Path) -> None:
    for label in ("a", "b"):
        path = encode(tmp_path / "train" / label / f"{label}.mp4", moving_frames(12), codec="libsvtav1")
    with pytest.raises(UserError, match="or of a codec that OpenCV lacks"):
        read_pictures(path, PRE)
    data = index_clips(tmp_path)
    memory, files = load_pictures(data, "train", PRE, 6), VideoSource(data, "train", PRE, 6, random=False)
    assert torch.equal(memory.batch([0, 1], 0).pictures, files.batch([0, 1], 0).pictures)


def test_the_recipe_chooses_the_source(data: Dataset) -> None:
    for source, kind in (("files", VideoSource), ("memory", type(load_pictures(data, "train", PRE, 2)))):
        config = DataConfig(source=source, frames=4)
        assert isinstance(open_source(config, data, "train", PRE, random=True), kind)


@pytest.fixture
def damaged(tmp_path: Path) -> Callable[[int], Dataset]:
    def make(broken: int) -> Dataset:
        for index in range(12):
            for label in ("a", "b"):
                encode(tmp_path / "train" / label / f"{label}{index:02d}.mp4", moving_frames(8, seed=index))
        for index in range(broken):
            (tmp_path / "train" / "a" / f"a{index:02d}.mp4").write_bytes(b"rubbish")
        return index_clips(tmp_path)

    return make


def test_a_broken_video_is_replaced_by_the_next_of_its_class(damaged: Callable[[int], Dataset], capsys: Any) -> None:
    data = damaged(2)
    source = VideoSource(data, "train", PRE, 4)
    batch = source.batch([0, 1, 5], 0)
    assert batch.indices.tolist() == [2, 2, 5]
    assert batch.labels.tolist() == [0, 0, 0]
    assert sorted(Path(name).name for name in source.broken) == ["a00.mp4", "a01.mp4"]
    fresh = VideoSource(data, "train", PRE, 4)
    assert torch.equal(fresh.batch([1], 0).pictures[0], batch.pictures[1])
    source.batch([0, 1], 1)
    said = capsys.readouterr().err.replace("\n", "")
    assert said.count("a01.mp4 cannot be read") == 2  # once in each source
    source.batch(range(24), 3)


def test_too_many_broken_videos_end_the_run(damaged: Callable[[int], Dataset]) -> None:
    source = VideoSource(damaged(6), "train", PRE, 4)
    with pytest.raises(UserError, match=r"5 of \d+ videos read so far are broken; the first: .*a00\.mp4"):
        source.batch(range(24), 0)
    tolerant = VideoSource(damaged(6), "train", PRE, 4, broken_share=0.5)
    assert tolerant.batch(range(24), 0).indices.tolist()[:7] == [6] * 7


class Given(Order):
    """Batches that were chosen by hand; worker number i of n makes batch i, i + n..."""

    def parts(self, start: int) -> Iterator[Part]:
        for step, places in enumerate(self.chosen):
            yield Part(step, 0, places, 0, 1.0, True)

    chosen: ClassVar[tuple[tuple[int, ...], ...]] = ()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_broken_videos_are_counted_over_all_workers(tmp_path: Path, workers: int, capsys: Any) -> None:
    for index in range(40):
        encode(tmp_path / "train" / "ab"[index % 2] / f"{index:02d}.mp4", moving_frames(5, seed=index))
    data = index_clips(tmp_path)
    bad, good = list(range(0, 20, 2)), list(range(1, 20, 2)) + list(range(20, 40))
    for place in bad:
        data.clips[place].path.write_bytes(b"rubbish")

    def run(*batches: list[int]) -> VideoSource:
        source = VideoSource(data, "train", PRE, 4, broken_share=0.2)
        order = type("_", (Given,), {"chosen": tuple(map(tuple, batches))})(40, 1, 1, 0, 1, 1, 0)
        feed = Feed(source, order, 0, 1, workers, torch.device("cpu"))
        for places in batches:
            assert len(feed.next()[1].indices) == len(places)
        feed.close()
        return source

    # The second worker alone meets more than a fifth of broken videos, all workers together do not.
    assert len(run(good[:25], bad[:5]).broken) == 5
    assert capsys.readouterr().err.replace("\n", "").count("cannot be read") == 5
    # Each worker alone meets just a fifth, together they meet more.
    with pytest.raises(UserError, match=r"5 of \d+ videos read so far are broken; the first: .*00\.mp4"):
        run(bad[:4], bad[4:8])


def test_a_batch_says_what_it_left_out_whoever_makes_it(damaged: Callable[[int], Dataset]) -> None:
    source = VideoSource(damaged(3), "train", PRE, 4)
    assert {place: "a" + f"{place:02d}.mp4" in why for place, why in source.draw([0, 5], 0).left_out.items()} == {
        0: True, 1: True, 2: True,
    }  # fmt: skip
    assert list(source.draw([1], 0).left_out) == [1, 2]  # again, though this process knows them
    assert source.broken == {}
    source.judge(source.draw([1], 0))
    assert len(source.broken) == 2


def test_a_source_that_is_gone_is_not_searched_to_its_end(tmp_path: Path) -> None:
    clips = tuple(Clip(tmp_path / f"{index}.mp4", "a", "train", str(index)) for index in range(5000))
    source = VideoSource(Dataset(tmp_path, ("a",), clips), "train", PRE, 4, broken_share=0.1)
    with pytest.raises(UserError, match=r"501 of 5000 videos cannot be read; the first: .*0\.mp4 does not exist"):
        source.batch([0], 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b""), "damaged or not a video"),
        (lambda path: path.write_text("a letter"), "damaged or not a video"),
        (lambda path: sound_only(path), "holds no pictures, only audio"),
        (lambda path: path.mkdir(), "does not exist"),
        (
            lambda path: path.write_bytes(encode(path.with_name("w.mp4"), moving_frames(9)).read_bytes()[:400]),
            "damaged",
        ),
    ],
)
def test_what_is_no_video_is_one_clear_line(make: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    make(tmp_path / "v.mp4")
    with pytest.raises(UserError, match=message) as caught, open_video(tmp_path / "v.mp4", "v.mp4"):
        pass
    assert "\n" not in str(caught.value)


def test_what_is_left_of_a_truncated_video_is_used(tmp_path: Path) -> None:
    path = encode(tmp_path / "v.mkv", moving_frames(60, seed=3), options={"crf": "10"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    board = read_pictures(path, PRE)
    assert 5 < len(board) < 55
    with open_video(path, "v") as video:
        total = video.ticks(PRE.fps)
        assert np.array_equal(video.pictures(range(total), PRE).pictures[: len(board)], board[:total])


def test_a_device_that_cannot_decode_is_named(tmp_path: Path) -> None:
    path = encode(tmp_path / "v.mp4", moving_frames(4))
    with pytest.raises(UnavailableDevice, match=r"decodes on cpu.* not on 'tpu'"), open_video(path, "v", device="tpu"):
        pass
    with pytest.raises(UnavailableDevice, match="cuda"), open_video(path, "v", device="cuda"):
        pass
