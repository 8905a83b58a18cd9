"""Embeddings are what the head sees; the file is whole, resumable and honest about its model; search finds the like."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.toolkit.test_cli import refused, vidon
from tests.train.synthetic import SIDE, tiny_recipe, write_data, write_video
from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from toolkit.recipe import DataConfig, StudentConfig
from train import features as module
from train.contact import contact_sheet
from train.data.clip import Clip
from train.evaluate import clip_answers
from train.features import embed, extract, read_features, search
from train.models import build, load_model
from train.models.student import build_student
from train.stages import distill, finetune
from train.stages.common import card_of


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"), train=6, val=3)


@pytest.fixture(scope="module")
def teacher(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetune(tiny_recipe(root, finetune={"epochs": 1}), tmp_path_factory.mktemp("teacher"))


@pytest.mark.parametrize("encoder", ["vit", "c3d", "i3d", "r2plus1d", "x3d-s"])
def test_a_clip_models_answer_is_its_head_on_the_embedding(encoder: str, root: Path) -> None:
    recipe = tiny_recipe(root, teacher={"encoder": encoder, "width": 0.1})
    model = build(card_of(recipe, "teacher", ("left", "right"))).eval()
    clips = torch.randn(3, 4, 3, SIDE, SIDE)
    seen = embed(model, clips)
    assert seen.shape == (3, model.width)
    torch.testing.assert_close(model.head(seen), clip_answers(model, clips))  # type: ignore[operator]


@pytest.mark.parametrize("readout", ["average", "motion"])
def test_a_students_answer_is_its_readout_on_the_embedding(readout: str) -> None:
    config = {"width": 0.25, "depth": 0.4, "readout": readout, "lags": (1,), "bends": (1,), "blocks": 6}
    student = build_student(StudentConfig.model_validate(config), 3, (3, SIDE, SIDE), 6).eval()
    clips = torch.randn(2, 6, 3, SIDE, SIDE)
    seen = embed(student, clips)
    layers = [layer for name, layer in student.readout.named_modules() if name.split(".")[0] in ("head", "heads")]
    heads = [layer for layer in layers if isinstance(layer, torch.nn.Linear)]
    parts = torch.split(seen, seen.shape[1] // len(heads), 1)
    answers = torch.stack([head(part) for head, part in zip(heads, parts, strict=True)]).sum(0)
    with torch.no_grad():
        torch.testing.assert_close(answers, clip_answers(student, clips), atol=1e-5, rtol=1e-5)


def test_the_file_holds_every_clip_with_its_label_and_split(root: Path, teacher: Path, tmp_path: Path) -> None:
    made = extract(teacher, root, tmp_path / "f.safetensors", batch=5)
    assert made.features.shape == (24, 32)
    assert made.label_names == ("left", "right")
    for name, label, split in zip(made.names, made.labels, made.splits, strict=True):
        assert Path(name).parts[:2] == (split, made.label_names[label])
    again = extract(teacher, root, tmp_path / "g.safetensors", batch=24)
    np.testing.assert_allclose(made.features, again.features, atol=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {"f.safetensors", "g.safetensors"}
    part = made.take("val")
    assert len(part.names) == 6
    assert set(part.splits) == {"val"}


def test_an_interrupted_extraction_goes_on_and_ends_the_same(
    root: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = extract(teacher, root, tmp_path / "whole.safetensors", batch=4)
    monkeypatch.setattr(module, "_EVERY_S", 0.0)
    real, calls = module._embed_chunk, []

    def cut(*given: object) -> object:
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "_embed_chunk", cut)
    with pytest.raises(KeyboardInterrupt):
        extract(teacher, root, tmp_path / "cut.safetensors", batch=4)
    assert not (tmp_path / "cut.safetensors").exists()
    resumed = extract(teacher, root, tmp_path / "cut.safetensors", batch=4)
    assert len(calls) == 3 + 4  # of six batches two were done before the third was cut
    np.testing.assert_array_equal(resumed.features, whole.features)
    assert resumed.names == whole.names
    assert not (tmp_path / ".cut.safetensors.partial").exists()


def test_another_models_partial_file_is_not_continued(root: Path, teacher: Path, tmp_path: Path) -> None:
    other = distill(tiny_recipe(root, distill={"epochs": 1}), tmp_path / "student")
    out = tmp_path / "f.safetensors"
    extract(other, root, out)
    out.rename(tmp_path / ".f.safetensors.partial")
    fresh = extract(teacher, root, out)
    assert fresh.features.shape == (24, 32)


def test_a_plain_folder_of_videos_has_no_labels(teacher: Path, tmp_path: Path) -> None:
    for index in range(3):
        write_video(tmp_path / "plain" / f"{index}.avi", 3, index)
    (tmp_path / "plain" / "broken.mp4").write_bytes(b"")
    made = extract(teacher, tmp_path / "plain", tmp_path / "f.safetensors")
    assert made.names == ("0.avi", "1.avi", "2.avi")
    assert made.labels.tolist() == [-1, -1, -1]
    hits = search(made, tmp_path / "plain" / "1.avi", 2)
    assert (hits[0].rank, hits[0].name, hits[0].label) == (1, "1.avi", "")
    assert hits[0].cosine == pytest.approx(1.0, abs=1e-5)
    assert len(hits) == 2


def test_what_cannot_be_embedded_or_searched_is_refused(root: Path, teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.mp4").write_bytes(b"")
    with pytest.raises(UserError, match="none of the 1 videos"):
        extract(teacher, tmp_path / "bad", tmp_path / "f.safetensors")
    assert not (tmp_path / "f.safetensors").exists()
    with pytest.raises(UserError, match="make them with  vidon embed"):
        read_features(tmp_path / "f.safetensors")
    (tmp_path / "f.safetensors").write_bytes(b"rubbish")
    with pytest.raises(UserError, match="damaged or of another program"):
        read_features(tmp_path / "f.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "f.safetensors")
    with pytest.raises(UserError, match="damaged or of another program"):
        read_features(tmp_path / "f.safetensors")
    made = extract(teacher, root, tmp_path / "f.safetensors")
    with pytest.raises(UserError, match="does not exist"):
        search(made, tmp_path / "nothing.mp4")
    other = finetune(tiny_recipe(root, finetune={"epochs": 1, "seed": 1}), tmp_path / "again")
    with pytest.raises(UserError, match="is not the one that made the features"):
        search(made, root / "val" / "left" / "val-left-0.avi", model=other)


def test_a_contact_sheet_has_a_row_for_each_clip_even_if_it_is_gone(root: Path, tmp_path: Path) -> None:
    from matplotlib.image import imread

    video = root / "val" / "left" / "val-left-0.avi"
    one = contact_sheet(tmp_path / "one.png", [(Clip(video, "", "", ""), "query")], 4, 10.0)
    two = contact_sheet(
        tmp_path / "two.png",
        [(Clip(video, "", "", ""), "query"), (Clip(tmp_path / "gone.avi", "", "", ""), "1"), (None, "2")],
        4,
        10.0,
    )
    assert imread(two).shape[0] > 1.5 * imread(one).shape[0]


def test_score_embed_and_search_by_commands(root: Path, teacher: Path, tmp_path: Path) -> None:
    code, out, _ = vidon("score", teacher, "--data", root, "--views", "2x1", "--out", tmp_path / "s", "--json")
    assert code == 0
    found = json.loads(out)
    assert (found["clips"], found["split"], found["views"]) == (6, "val", [2, 1])
    assert (tmp_path / "s" / "confusion.png").is_file()
    assert json.loads((tmp_path / "s" / "metrics.json").read_text())["top1"] == found["top1"]
    features = tmp_path / "f.safetensors"
    code, out, _ = vidon("embed", teacher, "--data", root, "--out", features, "--json")
    assert code == 0
    assert {"knn", "recall@1", "map"} <= set(json.loads(out))
    query = root / "train" / "right" / "train-right-2.avi"
    moved = shutil.copytree(root, tmp_path / "moved")
    code, out, _ = vidon(
        "search", features, "--clip", query, "--top", "3", "--data", moved, "--sheet", tmp_path / "s.png", "--json"
    )
    assert code == 0
    hits = json.loads(out)["hits"]
    assert hits[0]["name"] == "train/right/train-right-2.avi"
    assert len(hits) == 3
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    assert "top-1" in vidon("score", teacher, "--data", root)[1]


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """HMDB51's lists of two folds; their videos lie elsewhere, in ``tmp_path / "videos"``."""
    folder = tmp_path / "lists"
    folder.mkdir()
    for label, step in (("left", -3), ("right", 3)):
        for index in range(3):
            write_video(tmp_path / "videos" / label / f"film{index}_{label}_x{index}.avi", step, seed=index)
        for fold, marks in ((1, (1, 2, 0)), (2, (1, 2, 2))):  # 1 trains, 2 tests, 0 is in neither
            lines = [f"film{index}_{label}_x{index}.avi {mark}" for index, mark in enumerate(marks)]
            (folder / f"{label}_test_split{fold}.txt").write_text("\n".join(lines))
    return folder


def test_score_embed_and_search_read_published_lists_as_training_does(
    lists: Path, teacher: Path, tmp_path: Path
) -> None:
    videos, file = tmp_path / "videos", tmp_path / "f.safetensors"
    data = ("--data", lists, "--videos", videos)

    def found(*arguments: str | Path) -> Any:
        code, out, errors = vidon(*arguments, "--json")
        assert code == 0, errors
        return json.loads(out)

    def drawn(*arguments: str | Path) -> Any:
        """A query of the right, and the picture of what was found."""
        sheet = tmp_path / "sheet.png"
        query = ("--clip", tmp_path / "right.avi", "--sheet", sheet)
        return found("search", file, *query, *arguments)["hits"], sheet.read_bytes()

    for options, count in (((), 2), (("--fold", "2"), 4), (("--format", "hmdb51", "--fold", "2"), 4)):
        assert found("score", teacher, *data, "--split", "test", *options)["clips"] == count
        assert found("embed", teacher, *data, *options, "--out", file)["clips"] == count + 2
    shutil.copy(videos / "right" / "film2_right_x2.avi", tmp_path / "right.avi")
    hits, sheet = drawn()
    assert (hits[0]["label"], round(hits[0]["cosine"], 4)) == ("right", 1.0)
    videos.rename(tmp_path / "moved")
    assert "set data.videos, or --videos" in refused("search", file, "--clip", tmp_path / "right.avi")
    assert drawn("--videos", tmp_path / "moved") == (hits, sheet)
    for command in (("score", teacher), ("embed", teacher), ("search", file, "--clip", tmp_path / "right.avi")):
        line = refused(*command, "--data", lists, "--format", "hmdb5")
        assert line.startswith("error: unknown format 'hmdb5' (did you mean 'hmdb51'?)")


def test_an_interrupted_run_on_other_videos_is_not_continued(lists: Path, teacher: Path, tmp_path: Path) -> None:
    """The same lists and names, but the videos come from another folder."""
    out = tmp_path / "f.safetensors"
    extract(teacher, DataConfig(root=lists, videos=tmp_path / "videos"), out)
    out.rename(tmp_path / ".f.safetensors.partial")
    other = tmp_path / "other"
    for video in sorted((tmp_path / "videos").rglob("*.avi")):
        write_video(other / video.parent.name / video.name, 1, seed=99)
    one, two = (read_features(tmp_path / ".f.safetensors.partial"),
                extract(teacher, DataConfig(root=lists, videos=other), out))  # fmt: skip
    assert one.names == two.names
    assert np.abs(one.features - two.features).max() > 1e-3


def test_the_commands_refuse_mistakes_in_one_line(root: Path, teacher: Path, tmp_path: Path) -> None:
    assert "--views '3' is not TEMPORALxSPATIAL" in refused("score", teacher, "--data", root, "--views", "3")
    assert "unknown split 'vall' (did you mean 'val'?)" in refused("score", teacher, "--data", root, "--split", "vall")
    assert "holds no model" in refused("embed", tmp_path, "--data", root, "--out", tmp_path / "f")
    assert "data does not exist" in refused("embed", teacher, "--data", tmp_path / "data", "--out", tmp_path / "f")
    assert "do not exist" in refused("search", tmp_path / "no.safetensors", "--clip", tmp_path / "x.mp4")
    for command in ("score", "embed", "search"):
        code, out, _ = vidon(command, "--help")
        assert code == 0
        assert "Example" in out


def test_the_loaded_model_of_a_stage_is_the_one_that_is_embedded(root: Path, teacher: Path, tmp_path: Path) -> None:
    made = extract(teacher, root, tmp_path / "f.safetensors")
    assert made.model == teacher.resolve()
    assert made.root == root.resolve()
    loaded = load_model(teacher)
    assert loaded.card.preprocess == Preprocess(size=(SIDE, SIDE), fps=10.0)
