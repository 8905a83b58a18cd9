"""A recipe is typed; what it does not know it refuses, naming the nearest key."""

import io
import locale
from pathlib import Path

import pytest

from toolkit.errors import UserError
from toolkit.recipe import Recipe, load_recipe


def _write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_an_empty_recipe_is_all_defaults(tmp_path: Path) -> None:
    assert load_recipe(_write(tmp_path, "")).student == Recipe().student


def test_values_and_overrides_are_read(tmp_path: Path) -> None:
    recipe = load_recipe(_write(tmp_path, "[distill]\nepochs = 3"), ("distill.lr=0.5", "student.temporal=conv"))
    assert (recipe.distill.epochs, recipe.distill.lr, recipe.student.temporal) == (3, 0.5, "conv")


def test_a_recipe_is_utf_8_whatever_the_system_speaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "recipe.toml"
    path.write_bytes(b"\xef\xbb\xbf" + '[data]\nroot = "T\u00fcr"'.encode())
    monkeypatch.setattr(locale, "getencoding", lambda: "ascii")
    monkeypatch.setattr(io, "text_encoding", lambda encoding, _=2: encoding or "ascii")
    assert load_recipe(path).data.root == tmp_path / "T\u00fcr"


def test_the_data_root_is_relative_to_the_recipe(tmp_path: Path) -> None:
    assert load_recipe(_write(tmp_path, '[data]\nroot = "clips"')).data.root == tmp_path / "clips"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[distil]\nepochs = 3", r"unknown key 'distil' \(did you mean 'distill'\?\)"),
        ("[distill]\nepoch = 3", r"unknown key 'distill.epoch' \(did you mean 'epochs'\?\)"),
        ("[preprocess]\nsizes = [3, 3]", r"unknown key 'preprocess.sizes' \(did you mean 'size'\?\)"),
        ("[distill]\nepochs = 0", r"distill.epochs: Input should be greater than or equal to 1"),
        ("[student]\ntemporal = 'lstm'", r"student.temporal: Input should be 'shift', 'conv'"),
        ("[distill", r"not valid TOML"),
        ("[FINETUNE]\nlr = 1", r"unknown key 'FINETUNE' \(did you mean 'finetune'\?\)"),
        ("version = 2\n[teachers]", r"is of version 2, this vidon reads version 1"),
        ("[finetune]\nlr = inf", r"finetune.lr: Input should be a finite number"),
        ("[finetune]\nepochs = true", r"finetune.epochs: Input should be a number, not true"),
        ("[finetune]\nbetas = [0.9, 1.0]", r"finetune.betas.1: Input should be less than 1"),
        ("[finetune]\nseed = -1", r"finetune.seed: Input should be greater"),
        ("[teacher]\ntubelet = [0, 16, 16]", r"teacher.tubelet.0: Input should be greater"),
        ("[teacher]\nmlp_ratio = -1", r"teacher.mlp_ratio: Input should be greater"),
        ("[student]\ndropout = 1.5", r"student.dropout: Input should be less than 1"),
        ("[student]\nlags = [0]", r"student.lags.0: Input should be greater"),
        ("[student]\nreadout = 'motion'\nlags = []\nbends = []", r"student: a motion readout needs lags or bends"),
        ("[preprocess]\nsize = [0, 8]", r"preprocess.size.0: Input should be greater"),
        ("[preprocess]\nstd = [0, 1, 1]", r"preprocess.std.0: Input should be greater than 0"),
        ("[preprocess]\nmean = [nan, 0, 0]", r"preprocess.mean.0: Input should be a finite number"),
        ("[preprocess]\nfit = 'stretch'\n[finetune]\nviews = [1, 3]", r"toml: finetune.views asks for 3 spatial crops"),
        ("name = 2024", r"name: Input should be a valid string; write it in quotes: '\"2024\"'"),
    ],
)
def test_each_mistake_is_one_line_that_names_the_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_recipe(_write(tmp_path, text))
    assert "\n" not in str(caught.value)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nothing\.toml does not exist"):
        load_recipe(tmp_path / "nothing.toml")


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder"):
        load_recipe(tmp_path)


def test_an_override_is_one_value_and_nothing_of_it_is_lost(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"finetune.lr: Input should be a valid number"):
        load_recipe(_write(tmp_path, ""), ("finetune.lr=1\nepochs=3",))
    found = load_recipe(
        None, ("finetune.views=[3, 3]", 'data.flips={left = "right"}', "distill.lr=.5", 'data.root="a=b"')
    )
    assert (found.finetune.views, found.data.flips, found.distill.lr) == ((3, 3), {"left": "right"}, 0.5)
    assert found.data.root == Path("a=b")


def test_a_student_finds_weights_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "older").mkdir()
    recipe = _write(tmp_path, '[student]\npretrained = "older"')
    assert load_recipe(recipe).student.pretrained == tmp_path / "older"
    assert load_recipe(recipe, ("student.pretrained=imagenet",)).student.pretrained == Path("imagenet")


@pytest.mark.parametrize("override", ["distill", "=3", "name.deep=3"])
def test_a_malformed_override_is_refused(tmp_path: Path, override: str) -> None:
    with pytest.raises(UserError, match=r"override|name"):
        load_recipe(_write(tmp_path, 'name = "x"'), (override,))


def test_recovery_takes_from_distillation_what_it_does_not_say_itself(tmp_path: Path) -> None:
    text = "[distill]\nepochs = 9\nlr = 0.5\nbatch = 16\nseed = 3\n[prune]\nbatch = 4"
    recipe = load_recipe(_write(tmp_path, text), ("distill.ema=0.9",))
    assert (recipe.prune.batch, recipe.prune.seed, recipe.prune.ema) == (4, 3, 0.9)
    assert (recipe.prune.epochs, recipe.prune.lr) == (10, 1e-3)
    assert load_recipe(None).prune.batch == load_recipe(None).distill.batch
