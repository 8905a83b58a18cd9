"""Lists that name no validation clips: whole groups of the training list choose, and the test list stays as it is."""

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest

from tests.train.test_data_check import vidon
from tests.train.videos import encode, moving_frames
from toolkit.recipe import DataConfig
from toolkit.splits import validation_groups
from train.data.index import Dataset, index_data

CLASSES, GROUPS, CLIPS = 12, 18, 4


def ucf101(root: Path) -> Path:
    """As UCF101: 25 groups a class, of which the last seven are the test list's."""
    root.mkdir()
    names = [f"Class{c}" for c in range(CLASSES)]
    (root / "classInd.txt").write_text("".join(f"{c + 1} {name}\n" for c, name in enumerate(names)))
    lines: dict[str, list[str]] = {"train": [], "test": []}
    for (c, name), group, clip in itertools.product(enumerate(names), range(25), range(CLIPS)):
        split = "train" if group < GROUPS else "test"
        mark = f" {c + 1}" if split == "train" else ""
        lines[split].append(f"{name}/v_{name}_g{group + 1:02d}_c{clip + 1:02d}.avi{mark}")
    for split, rows in lines.items():
        (root / f"{split}list01.txt").write_text("\n".join(rows))
    return root


def groups(data: Dataset, split: str) -> set[str]:
    return {clip.group for clip in data.clips if clip.split == split}


def test_whole_groups_of_each_class_are_taken_and_the_test_list_is_not_touched(tmp_path: Path) -> None:
    root = ucf101(tmp_path / "lists")
    given = index_data(DataConfig(root=root, val_share=0))
    data = index_data(DataConfig(root=root))
    assert groups(given, "val") == set()
    assert given.taken == 0
    assert data.split("test") == given.split("test")
    assert not groups(data, "train") & groups(data, "val")
    assert groups(data, "train") | groups(data, "val") == groups(given, "train")
    assert {clip.path for clip in data.clips} == {clip.path for clip in given.clips}
    assert data.taken == len(data.split("val"))
    assert 0.07 < data.taken / len(given.split("train")) < 0.14
    taken = Counter(clip.label for clip in data.split("val"))
    assert set(taken) == set(data.labels)
    assert all(count % CLIPS == 0 for count in taken.values())
    assert {clip.label for clip in data.split("train")} == set(data.labels)


def test_the_choice_is_the_same_each_time_and_hardly_depends_on_other_clips(tmp_path: Path) -> None:
    root = ucf101(tmp_path / "lists")
    first = groups(index_data(DataConfig(root=root)), "val")
    lines = (root / "trainlist01.txt").read_text().splitlines()
    (root / "trainlist01.txt").write_text("\n".join(reversed(lines)))
    assert groups(index_data(DataConfig(root=root)), "val") == first
    (root / "trainlist01.txt").write_text("\n".join(line for line in lines if "_c04" not in line))
    assert groups(index_data(DataConfig(root=root)), "val") == first
    assert groups(index_data(DataConfig(root=root, val_share=0.3)), "val") > first


LISTS = {
    "csv": ("list.csv", "path,label,split,group", "{n}.mp4,{label},{split},g{group}"),
    "kinetics": ("list.csv", "label,youtube_id,time_start,time_end,split", "{label},id{group},{n},{next},{split}"),
    "hmdb51": ("{label}_test_split1.txt", "", "film{group}_{label}_{n}.avi {mark}"),
    "folders": ("{split}/{label}/{group}-{n}.mp4", "", ""),
}


@pytest.mark.parametrize("form", LISTS)
def test_every_layout_without_validation_is_treated_alike(form: str, tmp_path: Path) -> None:
    place, head, line = LISTS[form]
    texts: dict[str, list[str]] = {}
    for n, (label, group) in enumerate(itertools.product("ab", range(30))):
        split = "train" if group < 20 else "test"
        of = {"n": n, "next": n + 1, "label": label, "split": split, "group": f"{group:02d}",
              "mark": 1 if split == "train" else 2}  # fmt: skip
        texts.setdefault(place.format(**of), [head] if head else []).append(line.format(**of))
    for name, lines in texts.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines))
    root = tmp_path / "data" / "list.csv" if place == "list.csv" else tmp_path / "data"
    data, given = index_data(DataConfig(root=root)), index_data(DataConfig(root=root, val_share=0))
    assert data.split("test") == given.split("test")
    assert len(given.split("train")) == 40
    assert 2 <= data.taken <= 10
    assert not groups(data, "train") & groups(data, "val")
    assert {clip.label for clip in data.split("val")} == {"a", "b"}


def test_a_validation_list_that_is_there_is_kept(tmp_path: Path) -> None:
    rows = [f"{n}.mp4,{'ab'[n % 2]},{'train' if n else 'val'},g{n}" for n in range(20)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split,group", *rows]))
    data = index_data(DataConfig(root=tmp_path / "list.csv"))
    assert groups(data, "val") == {"g0"}
    assert data.taken == 0


def test_a_class_of_one_group_and_a_group_of_several_classes_go_on_training() -> None:
    known = [("a", "g1"), ("a", "g2"), ("b", "g1"), ("b", "g2"), ("c", "g1"), ("d", "g3")]
    for share in (0.01, 0.1, 0.5):
        chosen = validation_groups(known, share)
        assert len(chosen & {"g1", "g2"}) <= 1
        assert "g3" not in chosen
        left = {label for label, group in known if group not in chosen}
        assert left == {"a", "b", "c", "d"}


def test_checks_and_shards_keep_the_lists_as_they_are(tmp_path: Path) -> None:
    rows = []
    for n in range(14):
        encode(tmp_path / f"{n}.mp4", moving_frames(8, seed=n))
        rows.append(f"{n}.mp4,{'ab'[n % 2]},{'train' if n < 12 else 'test'},g{n}")
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split,group", *rows]))
    counts = json.loads(vidon("data", "check", tmp_path / "list.csv", "--json", "--distance", "0")[1])["counts"]
    assert counts == {"train": {"a": 6, "b": 6}, "val": {"a": 0, "b": 0}, "test": {"a": 1, "b": 1}}
    assert vidon("data", "shard", tmp_path / "list.csv", "--out", tmp_path / "shards")[0] == 0
    shards, files = (index_data(DataConfig(root=root)) for root in (tmp_path / "shards", tmp_path / "list.csv"))
    assert groups(shards, "val") == groups(files, "val") != set()
    assert index_data(DataConfig(root=tmp_path / "shards", val_share=0)).taken == 0
