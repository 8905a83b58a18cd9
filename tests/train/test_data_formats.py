"""The published layouts, each as its authors publish it, found by itself; and what is wrong in one clear line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.boxes import write_boxes
from tests.train.videos import encode, moving_frames
from toolkit.coco import read_coco
from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from toolkit.recipe import DataConfig
from train.data.clips import load_pictures
from train.data.formats import FORMATS
from train.data.index import Clip, Dataset, index_clips, index_data
from train.data.targets import Targets
from train.data.videos import VideoSource

PRE = Preprocess(size=(24, 32))


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def by_name(data: Dataset) -> dict[str, Clip]:
    return {clip.path.name: clip for clip in data.clips}


KINETICS = (
    "label,youtube_id,time_start,time_end,split\n"
    'archery,AAAAAAAAAAA,12,22,train\n"playing, poker",BBBBBBBBBBB,3,13,validate\narchery,-CCCCCCCCCC,0,10,test\n'
)
UCF = {
    "ucfTrainTestlist/classInd.txt": "1 Archery\n2 Basketball\n",
    "ucfTrainTestlist/trainlist01.txt": "Archery/v_Archery_g08_c01.avi 1\nBasketball/v_Basketball_g01_c02.avi 2\n",
    "ucfTrainTestlist/testlist01.txt": "Archery/v_Archery_g01_c01.avi\n",
    "ucfTrainTestlist/trainlist02.txt": "Archery/v_Archery_g01_c01.avi 1\n",
    "ucfTrainTestlist/testlist02.txt": "Basketball/v_Basketball_g01_c02.avi\n",
    "UCF-101/Archery/v_Archery_g08_c01.avi": "",
    "UCF-101/Archery/v_Archery_g01_c01.avi": "",
    "UCF-101/Basketball/v_Basketball_g01_c02.avi": "",
}
HMDB = {
    "splits/brush_hair_test_split1.txt": "April_09_brush_hair_u_nm_np1_ba_goo_0.avi 1 \n"
    "April_09_brush_hair_u_nm_np1_ba_goo_1.avi 2 \nunused_brush_hair_u.avi 0 \n",
    "splits/wave_test_split1.txt": "20060723_wave_f_cm_np1_ba_med_0.avi 2\n",
    "splits/wave_test_split2.txt": "20060723_wave_f_cm_np1_ba_med_0.avi 1\n",
    "videos/brush_hair/April_09_brush_hair_u_nm_np1_ba_goo_0.avi": "",
}
SOMETHING = {
    "something-something-v2-labels.json": '{"Pushing something": "0", "Holding something next to something": "1"}',
    "something-something-v2-train.json": json.dumps([
        {"id": "78687", "label": "holding a cup next to a bag", "template": "Holding [something] next to [something]",
         "placeholders": ["a cup", "a bag"]},
    ]),
    "something-something-v2-validation.json": json.dumps([
        {"id": "74225", "label": "pushing a pen", "template": "Pushing [something]", "placeholders": ["a pen"]}
    ]),
    "20bn-something-something-v2/78687.webm": "",
}  # fmt: skip


def test_kinetics_finds_trimmed_and_whole_videos(tmp_path: Path) -> None:
    write(tmp_path, {"list.csv": KINETICS, "v/AAAAAAAAAAA_000012_000022.mp4": "", "v/sub/BBBBBBBBBBB.mp4": ""})
    data = index_clips(tmp_path / "list.csv")
    assert data.labels == ("archery", "playing, poker")
    trimmed, whole, gone = data.clips
    assert (trimmed.split, trimmed.span, trimmed.group) == ("train", (None, None), "AAAAAAAAAAA")
    assert (whole.split, whole.span, whole.path.name) == ("val", (3.0, 13.0), "BBBBBBBBBBB.mp4")
    assert (gone.split, gone.path.exists()) == ("test", False)
    write(tmp_path / "folder", {"train.csv": KINETICS.replace("validate", "train").replace("test", "train")})
    config = DataConfig(root=tmp_path / "folder", videos=tmp_path / "v")
    assert index_data(config).clips[1].path == tmp_path / "v" / "sub" / "BBBBBBBBBBB.mp4"


def test_ucf101_follows_its_fold(tmp_path: Path) -> None:
    write(tmp_path, UCF)
    data = by_name(index_clips(tmp_path))
    assert data["v_Archery_g08_c01.avi"].path == tmp_path / "UCF-101" / "Archery" / "v_Archery_g08_c01.avi"
    assert data["v_Archery_g08_c01.avi"].group == "Archery_g08"
    assert {name: clip.split for name, clip in data.items()} == {
        "v_Archery_g08_c01.avi": "train", "v_Basketball_g01_c02.avi": "train", "v_Archery_g01_c01.avi": "test",
    }  # fmt: skip
    second = by_name(index_data(DataConfig(root=tmp_path, fold=2)))
    assert second["v_Archery_g01_c01.avi"].split == "train"
    assert second["v_Basketball_g01_c02.avi"].label == "Basketball"
    with pytest.raises(UserError, match=r"trainlist03\.txt does not exist: data\.fold = 3, lists there: trainlist01"):
        index_data(DataConfig(root=tmp_path, fold=3))


def test_hmdb51_marks_training_test_and_unused(tmp_path: Path) -> None:
    data = by_name(index_clips(write(tmp_path, HMDB)))
    assert {name: (clip.label, clip.split) for name, clip in data.items()} == {
        "April_09_brush_hair_u_nm_np1_ba_goo_0.avi": ("brush_hair", "train"),
        "April_09_brush_hair_u_nm_np1_ba_goo_1.avi": ("brush_hair", "test"),
        "20060723_wave_f_cm_np1_ba_med_0.avi": ("wave", "test"),
    }
    first = data["April_09_brush_hair_u_nm_np1_ba_goo_0.avi"]
    assert first.group == "April_09"
    assert first.path.parent == tmp_path / "videos" / "brush_hair"
    with pytest.raises(UserError, match=r"data\.fold = 3, folds there: 1, 2"):
        index_data(DataConfig(root=tmp_path, fold=3))


def test_something_something_takes_the_brackets_off(tmp_path: Path) -> None:
    data = index_clips(write(tmp_path, SOMETHING))
    train, val = data.clips
    assert (train.label, train.split) == ("Holding something next to something", "train")
    assert train.path == tmp_path / "20bn-something-something-v2" / "78687.webm"
    assert (val.label, val.split) == ("Pushing something", "val")
    assert data.meta() == {"placeholders": ("a cup; a bag", "a pen")}


def coco(**changes: Any) -> str:
    raw: dict[str, Any] = {
        "categories": [{"id": 7, "name": "car"}, {"id": 3, "name": "bottle"}],
        "videos": [
            {"id": 1, "file_name": "1.mp4", "split": "train"},
            {"id": 2, "file_name": "2.mp4", "split": "val"},
        ],
        "images": [{"id": 10 + f, "video_id": 1, "frame_index": f} for f in (0, 4, 8)]
        + [{"id": 20, "video_id": 2, "frame_index": 0}],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 7, "bbox": [10, 8, 20, 10]},
            {"id": 2, "image_id": 14, "category_id": 7, "bbox": [30, 8, 20, 10]},
            {"id": 3, "image_id": 14, "category_id": 3, "bbox": [0, 0, 4, 4]},
        ],
    }
    return json.dumps({**raw, **changes})


def test_coco_videos_give_boxes_where_their_pixels_went(tmp_path: Path) -> None:
    for name in ("1.mp4", "2.mp4"):
        encode(tmp_path / name, moving_frames(12))
    data = index_clips(write(tmp_path, {"boxes.json": coco()}) / "boxes.json")
    assert data.labels == ("bottle", "car")
    assert data.multi_label
    source = VideoSource(data, "train", PRE, 12)
    batch = source.batch([0], 0)
    assert batch.boxes is not None
    assert batch.box_labels is not None
    assert batch.boxes.shape == (1, 12, 2, 4)
    assert torch.equal(batch.boxes[0, 0, 0], torch.tensor([5.0, 4.0, 15.0, 9.0]))  # 48x64 -> 24x32
    assert batch.box_labels[0, 0].tolist() == [1, -1]
    assert batch.box_labels[0, 4].tolist() == [1, 0]
    assert torch.equal(batch.boxes[0, 3], batch.boxes[0, 4])  # the nearest annotated frame is 4
    assert batch.box_labels[0, 8].tolist() == [-1, -1]
    assert batch.labels.tolist() == [[1.0, 1.0]]
    memory = load_pictures(data, "train", PRE, 12).batch([0], 0)
    assert memory.boxes is not None
    assert torch.equal(memory.boxes, batch.boxes)
    assert torch.equal(memory.pictures, batch.pictures)


def test_boxes_outside_the_crop_are_cut_or_left_out(tmp_path: Path) -> None:
    encode(tmp_path / "1.mp4", moving_frames(2))
    annotations = [{"id": n, "image_id": 10, "category_id": 7, "bbox": box}
                   for n, box in enumerate([[0, 0, 6, 48], [4, 10, 12, 10], [20, 20, 10, 10]])]  # fmt: skip
    images = [{"id": 10, "video_id": 1, "frame_index": 0}]
    videos = [{"id": 1, "file_name": "1.mp4", "split": "train"}]
    write(tmp_path, {"b.json": coco(annotations=annotations, images=images, videos=videos)})
    square = VideoSource(index_clips(tmp_path / "b.json"), "train", Preprocess(size=(24, 24)), 1, random=False)
    batch = square.batch([0], 0)
    assert batch.boxes is not None
    assert batch.boxes[0, 0].tolist() == [[0, 5, 4, 10], [6, 10, 11, 15]]  # the middle 48 of 64 columns, at half size


def test_a_classifier_and_a_detector_read_the_same_boxes_from_one_file(tmp_path: Path) -> None:
    path = write_boxes(tmp_path, frames=4)
    clips = {clip.path.name: clip for clip in index_clips(path).clips}
    footage = read_coco(path).footage
    assert {part.path.name for part in footage} == clips.keys()
    for part in footage:
        clip = clips[part.path.name]
        assert (clip.split, list(clip.annotated)) == (part.split, sorted(part.frames))
        for frame, known in part.frames.items():
            assert [box.corners for box in clip.boxes if box.frame == frame] == [tuple(row) for row in known.boxes]


@pytest.mark.parametrize("videos", ["none", [3], [{"id": [1]}]], ids=str)
def test_a_broken_table_of_videos_is_one_line_for_both(videos: Any, tmp_path: Path) -> None:
    path = write(tmp_path, {"b.json": coco(videos=videos)}) / "b.json"
    for read in (index_clips, read_coco):
        with pytest.raises(UserError, match=r"is not COCO: .*'videos'"):
            read(path)


def test_coco_frames_as_pictures_make_a_clip_a_folder(tmp_path: Path) -> None:
    import cv2

    images: list[dict[str, Any]] = []
    for folder in ("a", "b"):
        (tmp_path / "train" / folder).mkdir(parents=True)
        for index, frame in enumerate(moving_frames(5)):
            name = f"train/{folder}/{index:03d}.png"
            cv2.imwrite(str(tmp_path / name), frame)
            images.append({"id": len(images), "file_name": name})
    annotations = [{"id": 1, "image_id": 2, "category_id": 7, "bbox": [2, 4, 20, 30]}]
    raw = json.loads(coco(images=images, annotations=annotations))
    del raw["videos"]
    data = index_clips(write(tmp_path, {"train.json": json.dumps(raw), "val.json": json.dumps(raw)}))
    assert {clip.split for clip in data.clips} == {"train", "val"}
    source = VideoSource(data, "train", PRE, 5)
    batch = source.batch([0, 1], 0)
    fourth = np.asarray(cv2.imread(str(tmp_path / "train/a/003.png")), np.uint8)
    assert np.array_equal(batch.pictures[0, 0, 3].numpy(), PRE.picture(fourth))
    assert batch.box_labels is not None
    assert batch.box_labels[0, :, 0].tolist() == [-1, -1, 1, -1, -1]
    assert (batch.box_labels[1] == -1).all()


def test_several_labels_become_multi_hot_and_other_columns_metadata(tmp_path: Path) -> None:
    text = (
        "path,label,label_2,subject,scene,start,end\nx.mp4,a;b,,s1,day,1,2.5\ny.mp4,c,a,s1,,,\nz.mp4,b,,s2,night,,4\n"
    )
    data = index_clips(write(tmp_path, {"d.csv": text}) / "d.csv", splits="given")
    assert data.labels == ("a", "b", "c")
    assert [clip.group for clip in data.clips] == ["s1", "s1", "s2"]
    assert [clip.span for clip in data.clips] == [(1.0, 2.5), (None, None), (None, 4.0)]
    targets = Targets.of(data, data.clips)
    assert targets.labels.tolist() == [[1, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert data.meta() == {"scene": ("day", "night")}
    assert targets.meta["scene"].tolist() == [0, -1, 1]


def test_the_digest_sees_all_that_a_list_says(tmp_path: Path) -> None:
    def digest(line: str) -> str:
        return index_clips(
            write(tmp_path, {"d.csv": f"path,label,start,scene\n{line}\ny.mp4,b,,\n"}) / "d.csv"
        ).digest()

    lines = ("x.mp4,a,,", "x.mp4,a,1,", "x.mp4,a,2,", "x.mp4,a,,day", "x.mp4,a;b,,", "z.mp4,a,,")
    assert len({digest(line) for line in lines}) == len(lines)
    assert digest(lines[0]) == digest(lines[0])
    one, two = (index_clips(write(tmp_path / n, {"c.json": coco(annotations=a)}) / "c.json").digest()
                for n, a in (("p", []), ("q", json.loads(coco())["annotations"])))  # fmt: skip
    assert one != two


def test_what_looks_like_two_formats_is_refused(tmp_path: Path) -> None:
    write(tmp_path, {**UCF, **HMDB})
    with pytest.raises(UserError, match=r"looks like ucf101 and like hmdb51: set data\.format"):
        index_clips(tmp_path)
    assert len(index_data(DataConfig(root=tmp_path, format="ucf101")).clips) == 3
    write(tmp_path / "t", {"a/x.mp4": "", "b/y.mp4": "", "s.tar": ""})
    with pytest.raises(UserError, match="looks like shards and like folders"):
        index_clips(tmp_path / "t")


def test_the_names_of_split_folders_that_people_use_are_known(tmp_path: Path) -> None:
    write(tmp_path, {f"{s}/{c}/x.mp4": "" for s in ("training", "Validation", "test") for c in "ab"})
    assert {clip.split for clip in index_clips(tmp_path).clips} == {"train", "val", "test"}


def test_every_format_is_documented_and_reachable() -> None:
    choices = DataConfig.model_fields["format"].annotation
    assert set(choices.__args__) == {"auto", *FORMATS}  # type: ignore[union-attr]
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    assert all(f"`{name}`" in page for name in FORMATS)


BAD: dict[str, tuple[dict[str, str], str]] = {
    "d1.csv": ({"d1.csv": "path,label\nx.mp4,a,b\n"}, r"line 2: 3 fields for 2 columns"),
    "d2.csv": ({"d2.csv": "path;label\nx.mp4;a\n"}, r"separates its columns by ';' or tabs"),
    "d3.csv": ({"d3.csv": "path,label,label\nx,a,b\n"}, r"two columns 'label'"),
    "d4.csv": ({"d4.csv": "path,label,start,end\nx,a,-1,3\n"}, r"line 2: start is -1: times are seconds from 0 on"),
    "d5.csv": ({"d5.csv": "path,label,start,end\nx,a,5,3\n"}, r"the clip ends at 3 s, not after its start \(5 s\)"),
    "d6.csv": ({"d6.csv": "path,label,start\nx,a,one\n"}, r"start 'one' is not a number of seconds"),
    "d7.csv": ({"d7.csv": "path,label\nx,a\nx,b\n"}, r"line 3: x is 'b' here and 'a' in line 2"),
    "d8.csv": ({"d8.csv": ""}, r"is empty: it needs a header"),
    "d9.csv": ({"d9.csv": "path,label,start\nx,a,nan\n"}, r"times are seconds from 0 on"),
    "k1.csv": ({"k1.csv": "label,youtube_id,time_strt,time_end\na,b,1,2\n"},
        r"'time_start' \(did you mean 'time_strt'"),
    "k2.csv": ({"k2.csv": "label,youtube_id,time_start,time_end\na,,1,2\n"}, r"line 2: youtube_id is empty"),
    "c1.json": ({"c1.json": "{"}, r"is not valid JSON: line 1"),
    "c2.json": ({"c2.json": "[]"}, r"is not COCO: it is no JSON object"),
    "c3.json": ({"c3.json": '{"images": [], "annotations": []}'}, r"the list 'categories' is missing"),
    "c4.json": ({"c4.json": coco(categories=[])}, r"names no category"),
    "c5.json": ({"c5.json": coco(annotations=[{"id": 1, "image_id": 99, "category_id": 7}])},
        r"image 99, which is not"),
    "c6.json": ({"c6.json": coco(annotations=[{"id": 1, "image_id": 10, "category_id": 7, "bbox": [1, 2, 0, 3]}])},
                r"bbox \[1, 2, 0, 3\]: expected"),
    "c7.json": ({"c7.json": coco(images=[{"id": 10, "video_id": 1}], annotations=[])},
        r"image 10 of video 1 has no frame_index"),
    "c8.json": ({"c8.json": coco(images=[{"id": 10, "video_id": 5}], annotations=[])},
        r"video 5, which is not in 'videos'"),
    "c9.json": ({"c9.json": coco(images=["x"])}, r"an entry of 'images' has no 'id'"),
    "u1": ({**{f"u1/{n}": t for n, t in UCF.items()}, "u1/ucfTrainTestlist/classInd.txt": "Archery\n"},
           r"line 1: 'Archery' is not 'number class'"),
    "u2": ({**{f"u2/{n}": t for n, t in UCF.items()}, "u2/ucfTrainTestlist/testlist01.txt": "Arch/v.avi\n"},
           r"'Arch/v\.avi' names no class"),
    "h1": ({"h1/wave_test_split1.txt": "video.avi 3\n"}, r"'video\.avi 3' is not 'video\.avi 0\|1\|2'"),
    "s1": ({"s1/labels.json": "{}", "s1/train.json": '[{"id": "1", "template": "Pushing [x]"}]'},
           r"entry 1: class 'Pushing x' is not in labels\.json"),
    "s2": ({"s2/labels.json": "{}", "s2/train.json": '[{"id": "1"}]'}, r"entry 1: id or template is missing"),
    "f1": ({"f1/data/a/x.mp4": "", "f1/data/b/y.mp4": ""}, r"one level deeper, use .*data"),
    "f2": ({"f2/x.mp4": "", "f2/y.mp4": ""}, r"2 videos lie in no class folder"),
    "x.dat": ({"x.dat": "?"}, r"is of no known format"),
    "i/index.json": ({"i/index.json": '{"format": "vidon-shards", "version": 1, "shards": [{}]}'},
        r"index.json is damaged"),
    "e.tar": ({"e.tar": "no tar at all"}, r"is damaged or no tar"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_each_mistake_in_a_list_is_one_clear_line(name: str, tmp_path: Path) -> None:
    files, message = BAD[name]
    with pytest.raises(UserError, match=message) as caught:
        index_clips(write(tmp_path, files) / name)
    assert "\n" not in str(caught.value)


def test_a_list_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_bytes("path,label\nx.mp4,Gürtel\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"is not UTF-8 text \(byte 18\): save it as UTF-8"):
        index_clips(tmp_path / "d.csv")
    (tmp_path / "bom.csv").write_bytes("\ufeffpath,label\nx.mp4,a\ny.mp4,b\n".encode())
    assert index_clips(tmp_path / "bom.csv").labels == ("a", "b")
