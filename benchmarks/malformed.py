"""Malformed inputs, made here, each given to the real command: exit code and the one line that people get.

    python benchmarks/malformed.py [--only NAME ...]

A case says what is wrong, the command, the exit code and a part of the message. Any traceback, any other exit code, or
any other message is a failure of this script. Odd but sound videos (10-bit, turned, uneven times...) must pass.
"""

import argparse
import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.common import ROOT, save
from benchmarks.malformed_data import (
    FRAMES,
    ambiguous,
    beside,
    changed,
    coco,
    copied,
    files,
    forbidden,
    good,
    loop,
    mostly_broken,
    nested,
    no_picture,
    no_train,
    one_broken,
    one_class,
    other_name,
    png,
    shards,
    short_clips,
    table,
    uneven,
    unseen,
    video,
)
from benchmarks.malformed_lists import LISTS
from tests.train.videos import encode, moving_frames, sound_only

__all__ = ["CASES", "Case", "arguments", "make_bundle"]

TINY = ("data.frames=4", "preprocess.size=[32,32]", "teacher.dim=32", "teacher.depth=1", "teacher.heads=2",
        "teacher.tubelet=[2,8,8]", "finetune.epochs=1", "finetune.batch=4", "run.workers=1")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """make: writes the data below a folder and returns its root. says: a regular expression for the output."""

    name: str
    command: str
    code: int
    says: str
    make: Callable[[Path], Path]
    options: tuple[str, ...] = ()


UCF = {"classInd_dot_txt": "1 a\n2 b\n", "trainlist01_dot_txt": "a/v_a_g01_c01.avi 1\n"}
CHECK = ("--frames", str(FRAMES))
CASES: tuple[Case, ...] = (
    Case("mp4 cut in the middle", "check", 2, "cannot be read: it is damaged", changed(lambda b: b[: len(b) // 2])),
    Case("mkv cut in the middle: what is left is used", "check", 0, "",
         changed(lambda b: b[: len(b) * 2 // 3], ".mkv")),
    Case("zero bytes", "check", 2, r"holds nothing \(0 bytes\)", beside(lambda p: p.write_bytes(b""))),
    Case("sound without pictures", "check", 2, "no pictures, only audio", beside(sound_only)),
    Case("text named .mp4", "check", 2, "damaged or not a video", beside(lambda p: p.write_text("a letter"))),
    Case("random bytes named .mp4", "check", 2, "damaged or not a video",
         beside(lambda p: p.write_bytes(np.random.default_rng(0).bytes(50_000)))),
    Case("a PNG named .mp4", "check", 2, "has 1 of 8 pictures", beside(png)),
    Case("mp4 named .avi", "check", 0, "",
         beside(lambda p: encode(p, moving_frames(9, seed=81)).rename(p.with_suffix(".avi")))),
    Case("video named .txt is not seen", "check", 0, "10 clips", beside(lambda p: video(p.with_suffix(".txt"), 82))),
    Case("hidden file of another system", "check", 0, "10 clips",
         beside(lambda p: p.write_bytes(b"\0" * 99), "train/a/._train_a0.mp4")),
    Case("one frame", "check", 2, "has 1 of 8 pictures", beside(lambda p: encode(p, moving_frames(1)))),
    Case("10-bit", "check", 0, "", beside(lambda p: encode(p, moving_frames(9, seed=83), pixels="yuv420p10le"))),
    Case("turned by 90 degrees", "check", 0, "", beside(lambda p: encode(p, moving_frames(9, seed=84), rotation=90))),
    Case("variable frame rate", "check", 0, "", beside(uneven)),
    Case("odd sizes", "check", 0, "", beside(lambda p: encode(p, moving_frames(9, 47, 63, 85), pixels="yuv444p"))),
    Case("grey", "check", 0, "", beside(lambda p: encode(p, moving_frames(9, seed=86), pixels="gray"))),
    Case("damaged in the middle: the rest is used", "check", 0, "",
         changed(lambda b: b[: len(b) // 2] + b"\xff" * 200 + b[len(b) // 2 + 200 :])),
    Case("folder named .mp4", "check", 0, "10 clips", beside(lambda p: p.mkdir())),
    Case("link to nothing", "check", 2, "does not exist", beside(lambda p: p.symlink_to("gone.mp4"))),
    Case("link to itself, folder in itself", "check", 2, r"me\.mp4 does not exist", loop),
    Case("pipe named .mp4", "check", 2, "does not exist", beside(lambda p: os.mkfifo(p))),
    Case("file that may not be read", "forbidden", 2, r"cannot be read \(Permission denied\)", forbidden),
    Case("file name that is not UTF-8", "check", 2, r"bad\\udcff\.mp4 is not UTF-8", other_name(b"bad\xff.mp4")),
    Case("line break in a file name", "check", 2, r"a\\nb\.mp4 is not UTF-8 or holds control", other_name(b"a\nb.mp4")),
    Case("the same video twice", "check", 2, "duplicate: .* the same bytes",
         copied("train/a/train_a0.mp4", "train/a/copy.mp4")),
    Case("the same video with two labels", "check", 2, "label: .* labels a and b",
         copied("train/a/train_a0.mp4", "train/b/other.mp4")),
    Case("the same video in two splits", "check", 2, "leak: .* in train and val",
         copied("train/a/train_a0.mp4", "val/a/other.mp4")),
    Case("a re-encoded copy: a warning", "check", 0, r"near-duplicate: .* look the same \(distance 0\.0",
         beside(lambda p: encode(p, moving_frames(FRAMES), options={"crf": "26"}))),
    Case("a re-encoded copy in two splits", "check", 2, "leak: .* look the same .* in train and val",
         beside(lambda p: encode(p, moving_frames(FRAMES), options={"crf": "26"}), "val/a/odd.mp4")),
    Case("one group in two splits", "check", 2, "leak: group g is in train and val",
         table("path,label,split,group\nx.mp4,a,train,g\ny.mp4,b,val,g\n", "x.mp4", "y.mp4")),
    Case("no such folder", "check", 2, "does not exist: check the path", lambda folder: folder / "nothing"),
    Case("empty folder", "check", 2, "holds no video", files(x_dot_txt="")),
    Case("one class", "check", 2, r"only one class \(a\)", one_class),
    Case("classes one level deeper", "check", 2, "one level deeper, use .*clips", nested),
    Case("videos without class folders", "check", 2, "1 videos lie in no class folder",
         lambda folder: video(folder / "data" / "x.mp4", 0).parent),
    Case("class folders and a tar", "check", 2, "looks like shards and like folders", ambiguous),
    Case("unknown format", "check", 2, "unknown format 'kinetic'.*'kinetics'", good, ("--format", "kinetic")),
    Case("CSV without the label column", "check", 2, r"no column 'label' \(did you mean 'lable'",
         table("path,lable\nx,a\n")),
    Case("CSV without a label in a line", "check", 2, "line 3: path or label is empty", table("path,label\nx,a\ny,\n")),
    Case("CSV with only a header", "check", 2, "holds no video", table("path,label\n")),
    Case("CSV of zero bytes", "check", 2, "is empty: it needs a header", table("")),
    Case("CSV in Latin-1", "check", 2, "is not UTF-8 text", table("path,label\nx,Gürtel\n".encode("latin-1"))),
    Case("CSV in UTF-16", "check", 2, "is not UTF-8 text", table("path,label\nx,a\n".encode("utf-16"))),
    Case("CSV with a byte order mark", "check", 0, "2 clips",
         table("\ufeffpath,label\nx.mp4,a\ny.mp4,b\n", "x.mp4", "y.mp4")),
    Case("CSV with semicolons", "check", 2, "save it with commas", table("path;label\nx;a\n")),
    Case("CSV with a field too many", "check", 2, "line 2: 3 fields for 2 columns", table("path,label\nx,a,b\n")),
    Case("CSV with a column twice", "check", 2, "two columns 'label'", table("path,label,label\nx,a,b\n")),
    Case("CSV with an open quote", "check", 2, "not a readable CSV", table('path,label\n"x,a\n')),
    Case("CSV with zero bytes inside", "check", 2, "CSV|zero byte", table(b"path,label\nx\0,a\ny,b\n")),
    Case("CSV with a path twice", "check", 2, "duplicate: .*the same bytes",
         table("path,label\nx.mp4,a\nx.mp4,a\ny.mp4,b\n", "x.mp4", "y.mp4")),
    Case("CSV with two labels for a path", "check", 2, "line 3: x.mp4 is 'b' here and 'a' in line 2",
         table("path,label\nx.mp4,a\nx.mp4,b\n")),
    Case("CSV with a misspelt split", "check", 2, r"unknown split 'trian' \(did you mean 'train'",
         table("path,label,split\nx,a,trian\ny,b,train\n")),
    Case("CSV whose videos are gone", "check", 2, "gone.mp4 does not exist",
         table("path,label\ngone.mp4,a\ny.mp4,b\n")),
    Case("negative time", "check", 2, "start is -1: times are seconds from 0", table("path,label,start\nx,a,-1\n")),
    Case("start after end", "check", 2, "ends at 2 s, not after its start", table("path,label,start,end\nx,a,3,2\n")),
    Case("time that is no number", "check", 2, "'one' is not a number", table("path,label,start\nx,a,one\n")),
    Case("times after the video's end", "check", 2, "no frame between 50.0 and 60.0 s",
         table("path,label,start,end\nx.mp4,a,50,60\ny.mp4,b,,\n", "x.mp4", "y.mp4")),
    Case("Kinetics without time_start", "check", 2, "no column 'time_start'",
         table("label,youtube_id,time_end\na,x,1\n")),
    Case("UCF101 without the fold's list", "check", 2, "lists there: trainlist01.txt", files(**UCF), ("--fold", "2")),
    Case("UCF101 line with an unknown class", "check", 2, "names no class",
         files(**UCF, testlist01_dot_txt="c/v_c_g01_c01.avi\n")),
    Case("HMDB51 line with a wrong mark", "check", 2, "is not 'video.avi 0|1|2'",
         files(wave_test_split1_dot_txt="v.avi 7\n")),
    Case("Something-Something with an unknown class", "check", 2, "is not in labels.json",
         files(labels_dot_json="{}", train_dot_json='[{"id": "1", "template": "Pushing [it]"}]')),
    Case("JSON that is cut off", "check", 2, "is not valid JSON: line 1",
         lambda folder: files(boxes_dot_json='{"images": [')(folder) / "boxes.json"),
    Case("COCO without categories", "check", 2, "the list 'categories' is missing", coco(categories=None)),
    Case("COCO annotation of no image", "check", 2, "is of image 9, which is not there",
         coco(annotations=[{"id": 1, "image_id": 9, "category_id": 1, "bbox": [1, 1, 5, 5]}])),
    Case("COCO box of negative width", "check", 2, r"bbox \[1, 1, -5, 5\]: expected",
         coco(annotations=[{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, -5, 5]}])),
    Case("COCO picture that is none", "check", 2, r"picture .*1\.jpg cannot be read", no_picture),
    Case("tar that is cut off", "check", 2, "is damaged or no tar",
         shards(lambda p: p.write_bytes(p.read_bytes()[:4000]))),
    Case("text named .tar", "check", 2, "is damaged or no tar", shards(lambda p: p.write_text("no tar"))),
    Case("tar without labels", "check", 2, "0 has no label: add it in 0.json", shards(lambda p: None, False)),
    Case("index of shards that is damaged", "check", 2, "index.json is damaged",
         files(index_dot_json='{"format": "vidon-shards", "version": 1, "shards": [{}]}')),
    Case("server that does not answer", "check", 2, "cannot be reached", lambda _: Path("http://127.0.0.1:9/index.json"))
         ,
    Case("training: no such data", "finetune", 2, "does not exist", lambda folder: folder / "nothing"),
    Case("training: four of eight videos broken", "finetune", 2, "4 of 8 videos are broken; the first", mostly_broken),
    Case("training: one of eight broken", "finetune", 0, "left out 1 broken of 8 videos", one_broken),
    Case("training on demand: one of eight broken", "finetune", 0, "left out a broken video: .*train_a0.mp4",
         one_broken,
         ("--set", "data.source=files", "--set", "finetune.epochs=2")),
    Case("training: no training split", "finetune", 2, "no clip in split 'train'", no_train),
    Case("training: videos shorter than a clip", "finetune", 0, "", short_clips),
    Case("training: mirror of an unknown label", "finetune", 2, "data.flips names 'up'", good,
         ("--set", 'data.flips={up="a"}')),
    Case("training: misspelt key", "finetune", 2, "did you mean 'frames'", good, ("--set", "data.frame=4")),
    Case("training: clips of no frames", "finetune", 2, "data.frames: Input should be greater", good,
         ("--set", "data.frames=0")),
    Case("training: a decoder that is not here", "finetune", 2, "not on 'tpu': set data.device", good,
         ("--set", "data.device=tpu")),
    Case("evaluation: label unseen in training", "evaluate", 2, "label 'c' was not in training", unseen),
    Case("evaluation: no such data", "evaluate", 2, "does not exist", lambda folder: folder / "nothing"),
    Case("evaluation: every video broken", "evaluate", 2, "none of the 2 videos can be read",
         table("path,label\nx.mp4,a\ny.mp4,b\n")),
    *(Case(name, "check", code, says, make, options[0] if options else ())
      for name, code, says, make, *options in LISTS),
)  # fmt: skip


def make_bundle(folder: Path) -> Path:
    """A tiny bundle that knows the classes a and b."""
    from deploy.export import export_bundle
    from toolkit.preprocess import Preprocess
    from toolkit.recipe import StudentConfig
    from train.models.student import build_student

    student = build_student(StudentConfig(width=0.25, depth=0.4), 2, (3, 32, 32), FRAMES).eval()
    rollout = np.random.default_rng(0).normal(size=(8, 3, 32, 32)).astype(np.float32)
    bundle = export_bundle(
        student, path=folder / "tiny.vidon", name="tiny", labels=("a", "b"), preprocess=Preprocess(size=(32, 32)),
        rollouts=[rollout], golden_frames=rollout, runtimes=("torch",), precisions=("fp32",), lineage={},
    )  # fmt: skip
    return bundle.root


def arguments(case: Case, root: Path, folder: Path, bundle: Path | None) -> list[str]:
    """The command line of a case."""
    if case.command == "evaluate":
        return ["evaluate", str(bundle), "--data", str(root), *case.options]
    if case.command == "finetune":
        settings = [part for setting in (*TINY, f"data.root={root}") for part in ("--set", setting)]
        return ["finetune", "--out", str(folder / "out"), *settings, *case.options]
    return ["data", "check", str(root), *CHECK, "--workers", "1", *case.options]


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Files forbidden to others are forbidden to us, even if we are root."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


def forbidden_run(words: Sequence[str]) -> tuple[int, str]:
    """In this process, as a user without rights."""
    from typer.testing import CliRunner

    from toolkit.cli import app

    CliRunner().invoke(app, list(words))  # imports what the other user may not read
    with nobody():
        result = CliRunner().invoke(app, list(words))
    trace = "" if isinstance(result.exception, SystemExit | None) else f"Traceback: {result.exception!r}"
    return result.exit_code, result.output + trace


def run(case: Case, folder: Path, bundle: Path) -> tuple[int, str]:
    """Exit code and everything printed."""
    words = arguments(case, case.make(folder), folder, bundle)
    if case.command == "forbidden":
        return forbidden_run(words)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "no_proxy": "127.0.0.1", "COLUMNS": "400"}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "toolkit", *words], capture_output=True, text=True, env=env, check=False
    )
    return done.returncode, done.stdout + done.stderr


def line_of(case: Case, output: str, folder: Path) -> str:
    """The line that says it, without this machine's folders."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    found = next((line for line in lines if case.says and re.search(case.says, line)), "")
    found = found or (lines[-1] if case.code else "passes")
    return found.replace(f"{folder}/", "").replace(str(folder), "").replace("|", "\\|")


def main() -> int:
    """Run every case; print and write what each got."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", help="Parts of the names of the cases to run; nothing is written then.")
    args = parser.parse_args()
    chosen = [case for case in CASES if not args.only or any(part in case.name for part in args.only)]
    rows, wrong = [], []
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o755)
        needs = any(case.command == "evaluate" for case in chosen)
        bundle = make_bundle(Path(scratch)) if needs else Path(scratch)
        for number, case in enumerate(chosen):
            folder = Path(scratch) / f"case{number}"
            folder.mkdir()
            code, output = run(case, folder, bundle)
            fine = code == case.code and re.search(case.says, output) and "Traceback" not in output
            if not fine:
                wrong.append(case.name)
                print(f"WRONG {case.name}: exit {code}\n{output}", flush=True)
            name = {"check": "data check", "forbidden": "data check"}.get(case.command, case.command)
            rows.append([case.name, f"`{name}`", code, line_of(case, output, folder)])
            print(rows[-1], flush=True)
    if not args.only and not wrong:
        caption = f"{len(rows)} inputs, each through the real command; none gave a traceback."
        print(save("malformed", caption, ["input", "command", "exit", "what people read"], rows, {}))
    print(f"{len(rows)} cases, wrong: {wrong}")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
