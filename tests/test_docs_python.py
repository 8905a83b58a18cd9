"""The Python that the docs show is run, block after block of a page, in a folder that has what it speaks of."""

import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers

from tests.train.synthetic import write_data
from toolkit.bundle import Bundle

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
RECIPE = """
[data]
root = "clips"
frames = 4
[preprocess]
size = [32, 32]
[teacher]
dim = 32
depth = 1
heads = 2
tubelet = [2, 8, 8]
[finetune]
epochs = 1
batch = 4
"""
#: Of a head a block and 64 numbers a head, as VideoMAE's sizes have, so that heads need not be said.
_VIDEOMAE = {
    "hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 64, "num_labels": 3,
    "decoder_hidden_size": 64, "decoder_num_attention_heads": 1, "decoder_num_hidden_layers": 1,
    "decoder_intermediate_size": 64,
}  # fmt: skip


def blocks(page: Path) -> list[tuple[int, str]]:
    """(line, text) of each Python block; the line is that of its first statement."""
    text = page.read_text()
    return [(text[: match.start(1)].count("\n") + 1, match[1]) for match in _BLOCK.finditer(text)]


def run(page: Path) -> dict[str, object]:
    """Run a page's blocks one after the other; an error shows the page and its line."""
    names: dict[str, object] = {"__name__": page.stem}
    for line, text in blocks(page):
        exec(compile("\n" * (line - 1) + text, str(page), "exec"), names)
    return names


@pytest.fixture
def folder(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader would stand: clips, a recipe, a bundle, and weights of VideoMAE in both layouts."""
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "clips", train=2, val=1)
    (tmp_path / "recipe.toml").write_text(RECIPE)
    shutil.copytree(bundle.root, tmp_path / "door.vidon")
    config = transformers.VideoMAEConfig(**_VIDEOMAE)
    transformers.VideoMAEForPreTraining(config).save_pretrained(tmp_path / "owner" / "videomae-base")
    torch.save(transformers.VideoMAEForVideoClassification(config).state_dict(), tmp_path / "checkpoint.pth")
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_the_python_of_a_page_runs(page: Path, folder: Path) -> None:
    names = run(page)
    assert len(names) > 2
    if page.name == "training.md":
        assert (folder / "runs" / "mine" / "metrics.jsonl").is_file()


def test_a_name_that_a_page_does_not_define_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Page\n```python\nx = 1\n```\ntext\n```python\nprint(x + y)\n```\n")
    assert blocks(page) == [(3, "x = 1\n"), (7, "print(x + y)\n")]
    with pytest.raises(NameError, match="'y'") as error:
        run(page)
    assert error.traceback[-1].lineno == 6  # counted from 0
