"""Labelled clips: the layouts people have, and one clear line for each mistake."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.train.synthetic import SIDE, tiny_recipe, write_data, write_video
from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from toolkit.video import read_pictures
from train.data.clips import Augment, load_pictures, normalise, normalise_on_device
from train.data.index import index_clips
from train.stages import open_data, pretrain

PRE = Preprocess(size=(SIDE, SIDE))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def test_split_folders_are_read(root: Path) -> None:
    data = index_clips(root)
    assert data.labels == ("left", "right")
    assert data.counts() == {
        "train": {"left": 12, "right": 12},
        "val": {"left": 4, "right": 4},
        "test": {"left": 4, "right": 4},
    }


def test_a_folder_per_class_gets_a_stable_split(tmp_path: Path) -> None:
    for label in ("a", "b"):
        for index in range(30):
            (tmp_path / label).mkdir(exist_ok=True)
            (tmp_path / label / f"{label}{index}.mp4").touch()
    first = index_clips(tmp_path)
    (tmp_path / "a" / "a_new.mp4").touch()
    second = {clip.path: clip.split for clip in index_clips(tmp_path).clips}
    assert all(second[clip.path] == clip.split for clip in first.clips)
    assert {clip.split for clip in first.clips} == {"train", "val", "test"}


def test_a_split_is_four_fifths_one_tenth_and_one_tenth(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("path,label\n" + "\n".join(f"v{i}.mp4,{'ab'[i % 2]}" for i in range(4000)))
    counts = Counter(clip.split for clip in index_clips(tmp_path / "d.csv").clips)
    assert [counts[split] / 4000 for split in ("train", "val", "test")] == pytest.approx([0.8, 0.1, 0.1], abs=0.015)


@pytest.mark.parametrize("kind", ["folders", "csv"])
def test_equal_file_names_do_not_tie_the_splits_of_the_classes(tmp_path: Path, kind: str) -> None:
    labels = [f"class{k}" for k in range(20)]
    for label in labels:
        (tmp_path / label).mkdir()
        for name in ("000", "001"):
            (tmp_path / label / f"{name}.mp4").touch()
    rows = [f"{label}/{name}.mp4,{label}" for label in labels for name in ("000", "001")]
    (tmp_path / "d.csv").write_text("path,label\n" + "\n".join(rows))
    counts = index_clips(tmp_path if kind == "folders" else tmp_path / "d.csv").counts()
    assert {split: 0 < sum(row.values()) < 40 for split, row in counts.items()} == dict.fromkeys(counts, True)
    assert 0 < sum(counts["train"][label] == 2 for label in labels) < 20


def test_a_csv_keeps_groups_together(tmp_path: Path) -> None:
    rows = [f"v{i}.mp4,{'ab'[i % 2]},g{i // 4}" for i in range(80)]
    (tmp_path / "d.csv").write_text("path,label,source_group\n" + "\n".join(rows))
    places: dict[str, set[str]] = {}
    for clip in index_clips(tmp_path / "d.csv").clips:
        places.setdefault(clip.group, set()).add(clip.split)
    assert len(places) == 20
    assert all(len(splits) == 1 for splits in places.values())


def test_data_without_splits_can_be_taken_whole(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("path,label\nx.mp4,a\ny.mp4,b\n")
    assert {clip.split for clip in index_clips(tmp_path / "d.csv", ("a", "b"), "given").clips} == {"test"}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no video"),
        ({"a/x.txt": "", "b/y.txt": ""}, "holds no video"),
        ({"a/x.mp4": "", "a/y.mp4": ""}, r"only one class \(a\)"),
        ({"d.csv": "file,label\nx,a"}, r"no column 'path'"),
        ({"d.csv": "path,lable\nx,a"}, r"no column 'label' \(did you mean 'lable'\?\)"),
        ({"d.csv": "path,label\nx.mp4,a\n,b"}, "line 3: path or label is empty"),
        (
            {"d.csv": "path,label,split\nx.mp4,a,trian\ny.mp4,b,train"},
            r"unknown split 'trian' \(did you mean 'train'\?\)",
        ),
        ({"d.csv": "path,label\n"}, "holds no video"),
    ],
)
def test_each_mistake_is_one_clear_line(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        index_clips(tmp_path / "d.csv" if "d.csv" in files else tmp_path)
    assert "\n" not in str(caught.value)


def test_videos_without_labels_are_enough_for_pretraining(tmp_path: Path) -> None:
    for index in range(12):
        write_video(tmp_path / "clips" / f"{index}.avi", 2, index)
    recipe = tiny_recipe(tmp_path / "clips", pretrain={"epochs": 1})
    with pytest.raises(UserError, match="12 videos lie in no class folder"):
        open_data(recipe)
    data = open_data(recipe, labelled=False)
    assert data.index.labels == ("unlabelled",)
    assert len(data.index.clips) == 12
    assert (pretrain(recipe, tmp_path / "out") / "model.safetensors").is_file()


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        index_clips(tmp_path / "nothing")


def test_a_label_unseen_in_training_is_an_error(root: Path) -> None:
    with pytest.raises(UserError, match=r"label 'left' was not in training \(did you mean 'loft'\?\)"):
        index_clips(root, ("loft", "right"))


def test_training_sees_the_very_pixels_that_the_device_sees(root: Path) -> None:
    data = index_clips(root)
    loaded = load_pictures(data, "train", PRE, 8)
    for index in (0, 13):
        device = read_pictures(Path(loaded.names[index]), PRE)
        assert np.array_equal(loaded.pictures[index], device)
        ours = normalise(loaded.pictures[index], PRE).numpy()
        assert np.array_equal(ours, np.stack([PRE.normalise(picture) for picture in device]))


def test_short_clips_repeat_their_last_picture(tmp_path: Path) -> None:
    for label in ("a", "b"):
        write_video(tmp_path / "train" / label / f"{label}.avi", 2, 0, frames=3)
    loaded = load_pictures(index_clips(tmp_path), "train", PRE, 8)
    assert loaded.pictures.shape == (2, 8, SIDE, SIDE, 3)
    assert np.array_equal(loaded.pictures[0, 2], loaded.pictures[0, 7])


def test_the_cache_gives_the_same_and_notices_changes(root: Path, tmp_path: Path) -> None:
    data = index_clips(root)
    first = load_pictures(data, "val", PRE, 4, tmp_path)
    again = load_pictures(data, "val", PRE, 4, tmp_path)
    assert np.array_equal(first.pictures, again.pictures)
    assert first.names == again.names
    load_pictures(data, "val", PRE.model_copy(update={"fps": 5.0}), 4, tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 2


def test_a_few_broken_videos_are_left_out_and_many_are_an_error(tmp_path: Path) -> None:
    for index in range(6):
        for label in ("a", "b"):
            write_video(tmp_path / "train" / label / f"{index}.avi", 2, index)
    (tmp_path / "train" / "a" / "0.avi").write_bytes(b"")
    loaded = load_pictures(index_clips(tmp_path), "train", PRE, 4)
    assert len(loaded) == 11
    for index in range(3):
        (tmp_path / "train" / "b" / f"{index}.avi").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"4 of 12 videos are broken; the first: .*0\.avi"):
        load_pictures(index_clips(tmp_path), "train", PRE, 4)


def test_a_mirror_swaps_left_and_right(root: Path) -> None:
    recipe = tiny_recipe(root)
    augment = Augment(PRE, ("left", "right"), True, recipe.data.flips)
    labels = torch.tensor([0, 1] * 20)
    clips = np.zeros((40, 2, SIDE, SIDE, 3), np.uint8)
    clips[:, :, :, : SIDE // 2] = 255  # bright on the left
    seen, turned = augment(clips, labels, torch.Generator().manual_seed(0))
    mirrored = seen[:, 0, 0, :, :8].mean((1, 2)) < seen[:, 0, 0, :, -8:].mean((1, 2))
    assert torch.equal(turned != labels, mirrored)
    assert 5 < int(mirrored.sum()) < 35


def test_augmentation_depends_on_its_generator_only(root: Path) -> None:
    augment = Augment(PRE, ("left", "right"), True, {})
    clips = np.random.default_rng(0).integers(0, 256, (3, 2, SIDE, SIDE, 3), dtype=np.uint8)
    labels = torch.zeros(3, dtype=torch.long)
    one, two, three = (augment(clips, labels, torch.Generator().manual_seed(s))[0] for s in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, three)


def test_pictures_on_a_device_are_normalised_bit_for_bit_as_on_the_board() -> None:
    pre = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    pictures = np.random.default_rng(0).integers(0, 256, (2, 3, 16, 16, 3), dtype=np.uint8)
    found = normalise_on_device(torch.from_numpy(pictures), pre)
    assert np.array_equal(found.numpy(), pre.normalise(pictures))


def test_what_is_drawn_on_the_cpu_is_used_where_the_pictures_are() -> None:
    augment = Augment(PRE, ("left", "right"), True, {"left": "right", "right": "left"})
    pictures, labels = torch.zeros(4, 2, SIDE, SIDE, 3, dtype=torch.uint8), torch.zeros(4, dtype=torch.long)
    clips, turned = augment(pictures.to("meta"), labels.to("meta"), torch.Generator())
    assert (clips.device.type, turned.device.type) == ("meta", "meta")
    assert clips.shape == (4, 2, 3, SIDE, SIDE)


def test_flips_must_name_labels() -> None:
    with pytest.raises(UserError, match=r"data\.flips names 'up'"):
        Augment(PRE, ("left", "right"), True, {"up": "left"})


def test_the_same_clips_elsewhere_are_the_same_data_and_others_are_not(tmp_path: Path) -> None:
    def made(name: str, video: str = "x", size: int = 1) -> str:
        for label in ("a", "b"):
            (tmp_path / name / label).mkdir(parents=True)
            (tmp_path / name / label / f"{video}.mp4").write_bytes(b"0" * size)
        return index_clips(tmp_path / name).digest()

    first = made("one")
    assert made("two") == first
    assert made("three", video="y") != first
    assert made("four", size=2) != first
