"""Mistakes in lists, shards and servers for ``benchmarks/malformed.py``: writers of each published layout, and cases.

What people get wrong without meaning it (another system's line ends, a byte order mark, backslashes, an id with its
suffix, a container of another name, hidden files) must just work; the rest is one line that names file and line.
"""

import gzip
import http.server
import io
import json
import tarfile
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.malformed_data import video

__all__ = ["LISTS", "Served", "serve"]

#: Name, exit code, a regular expression for the output, and what writes the data below a folder and returns the root.
Row = tuple[str, int, str, Callable[[Path], Path]] | tuple[str, int, str, Callable[[Path], Path], tuple[str, ...]]
_MACOS = b"\0\x05\x16\x07\0\x02\0\0Mac OS X" + bytes(30)


def written(folder: Path, texts: Mapping[str, str | bytes], videos: Sequence[str]) -> Path:
    """Lists and videos below a folder."""
    root = folder / "data"
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for seed, name in enumerate(videos):
        video(root / name, seed)
    return root


def layout(
    texts: Mapping[str, str | bytes], videos: Sequence[str], root: str = ""
) -> Callable[..., Callable[..., Path]]:
    """A sound layout; what it returns makes it with some texts changed, other videos, and more done to it."""

    def changed(
        then: Callable[[Path], object] | None = None, clips: Sequence[str] = tuple(videos),
        **others: str | bytes | None,
    ) -> Callable[[Path], Path]:  # fmt: skip
        keys = {name.rpartition("/")[2].partition(".")[0].lstrip("_").replace("-", "_"): name for name in texts}

        def make(folder: Path) -> Path:
            new = {keys[key]: text for key, text in others.items()}
            found = {name: text for name, text in {**texts, **new}.items() if text is not None}
            place = written(folder, found, clips)
            if then is not None:
                then(place)
            return place / root

        return make

    return changed


def hidden(*names: str) -> Callable[[Path], None]:
    """Files that macOS and Windows leave beside others."""

    def write(root: Path) -> None:
        for name in names:
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_MACOS)

    return write


def crlf(text: str) -> bytes:
    """As Windows writes it, with a byte order mark."""
    return b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()


_FOLDERS = ("train/wave/a.mp4", "train/sit/b.mp4", "test/wave/c.mp4", "test/sit/d.mp4")
folders = layout({}, _FOLDERS)

_K = "label,youtube_id,time_start,time_end,split\n"
_K_ROWS = "wave,aaa,0,1,train\nsit,bbb,0,1,test\n"
kinetics = layout({"list.csv": _K + _K_ROWS}, ("aaa_000000_000001.mp4", "bbb_000000_000001.mp4"))

_UCF = ("v_Wave_g01_c01.avi", "v_Sit_g01_c01.avi", "v_Wave_g02_c01.avi", "v_Sit_g02_c01.avi")
_U_TRAIN = f"Wave/{_UCF[0]} 1\nSit/{_UCF[1]} 2\n"
ucf = layout(
    {"classInd.txt": "1 Wave\n2 Sit\n", "trainlist01.txt": _U_TRAIN,
     "testlist01.txt": f"Wave/{_UCF[2]}\nSit/{_UCF[3]}\n"},
    tuple(f"{name.split('_')[1]}/{name}" for name in _UCF),
)  # fmt: skip

_HMDB = ("film1_wave_u_0.avi", "film2_wave_u_0.avi", "film1_sit_u_0.avi", "film2_sit_u_0.avi")
hmdb = layout(
    {f"{label}_test_split1.txt": f"film1_{label}_u_0.avi 1\nfilm2_{label}_u_0.avi 2\n" for label in ("wave", "sit")},
    tuple(f"{name.split('_')[1]}/{name}" for name in _HMDB),
)

_S_TRAIN = [{"id": "1", "template": "Pushing [it]", "placeholders": ["a cup"]},
            {"id": "2", "template": "Lifting [it]", "placeholders": ["a pen"]}]  # fmt: skip
_S_LABELS = {"Pushing it": "0", "Lifting it": "1"}
something = layout(
    {"labels.json": json.dumps(_S_LABELS), "train.json": json.dumps(_S_TRAIN),
     "validation.json": json.dumps([{**_S_TRAIN[0], "id": "3"}]), "test-answers.csv": "4;Lifting it\n"},
    ("1.mp4", "2.mp4", "3.mp4", "4.mp4"),
)  # fmt: skip

_COCO: dict[str, Any] = {
    "categories": [{"id": 1, "name": "car"}, {"id": 2, "name": "bus"}],
    "videos": [{"id": 1, "file_name": "clips/v.mp4", "split": "train"}, {"id": 2, "file_name": "clips/w.mp4",
                                                                         "split": "test"}],
    "images": [{"id": 1, "video_id": 1, "frame_index": 0}, {"id": 2, "video_id": 2, "frame_index": 0}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]},
                    {"id": 2, "image_id": 2, "category_id": 2, "bbox": [1, 1, 5, 5]}],
}  # fmt: skip


def boxes(then: Callable[[Path], object] | None = None, encode: Callable[[str], bytes] = str.encode,
          **changes: object) -> Callable[[Path], Path]:  # fmt: skip
    """A COCO list with parts of it changed."""

    def make(folder: Path) -> Path:
        root = written(folder, {"boxes.json": encode(json.dumps({**_COCO, **changes}))}, ("clips/v.mp4", "clips/w.mp4"))
        if then is not None:
            then(root)
        return root / "boxes.json"

    return make


def packed(
    names: Sequence[str] = ("0", "1"), label: Callable[[int], object] = lambda n: {"label": "ab"[n % 2]},
    more: Mapping[str, bytes] | None = None,
) -> bytes:  # fmt: skip
    """The bytes of a tar shard: ``NAME.mp4`` and ``NAME.json`` each."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        parts = [
            part
            for n, name in enumerate(names)
            for part in ((f"{name}.mp4", _bytes(n)), (f"{name}.json", json.dumps(label(n)).encode()))
        ]
        for name, content in (*parts, *(more or {}).items()):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


def _bytes(seed: int) -> bytes:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        return video(Path(folder) / "v.mp4", seed).read_bytes()


def shard(name: str, content: Callable[[], bytes], root: str = "") -> Callable[[Path], Path]:
    """A folder with one file."""

    def make(folder: Path) -> Path:
        return written(folder, {name: content()}, ()) / root

    return make


class Served(http.server.BaseHTTPRequestHandler):
    """Answers as ``faults`` say, one for each request, and then as a sound server with ranges; ``!``: for ever."""

    content: bytes
    faults: list[str]
    asked: list[str]

    def do_GET(self) -> None:
        """Answer, or do not."""
        self.asked.append(self.headers.get("Range", ""))
        fault = self.faults[0].removesuffix("!")
        if not self.faults[0].endswith("!") and len(self.faults) > 1:
            self.faults.pop(0)
        if fault.isdigit():
            self.send_error(int(fault))
            return
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        whole = "Range" not in self.headers or fault.startswith("whole")
        begin, end = (0, len(self.content)) if whole else (int(first), int(last) + 1 if last else len(self.content))
        body = self.content[begin:end]
        self.send_response(200 if whole else 206)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if fault.endswith("cut") else b"" if fault == "drop" else body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


_running: list[http.server.ThreadingHTTPServer] = []


def serve(content: bytes, *faults: str) -> tuple[http.server.ThreadingHTTPServer, type[Served]]:
    """A server of this machine for one file, until the next is started."""
    while _running:
        old = _running.pop()
        old.shutdown()
        old.server_close()
    kind = type("_Served", (Served,), {"content": content, "faults": [*faults, "good"], "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _running.append(server)
    return server, kind


def remote(name: str, content: Callable[[], bytes], *faults: str) -> Callable[[Path], Path]:
    """The URL of a file behind a server that goes wrong."""

    def make(_: Path) -> Path:
        server, _kind = serve(content(), *faults)
        return Path(f"http://127.0.0.1:{server.server_address[1]}/{name}")

    return make


def linked(root: Path) -> None:
    """Videos of a class that lie elsewhere."""
    video(root.parent / "elsewhere" / "e.mp4", 9)
    (root / "train" / "wave" / "more").symlink_to(root.parent / "elsewhere")


def circle(root: Path) -> None:
    """A folder that is in itself."""
    (root / "train" / "wave" / "again").symlink_to(root / "train" / "wave")


def moved(old: str, new: str) -> Callable[[Path], object]:
    """One file elsewhere."""
    return lambda root: (root / old).rename(root / new)


_TABS = _U_TRAIN.replace(" ", "\t")
LISTS: tuple[Row, ...] = (
    ("folders: spaces and other letters in names", 0, "4 clips",
     folders(None, ("train/wave hand/\u00e4 b.mp4", "train/sit/\u4e2d.mp4", "test/wave hand/c.mp4", "test/sit/d.mp4"))),
    ("folders: files of macOS and Windows", 0, "4 clips",
     folders(hidden("train/wave/._a.mp4", "train/wave/Thumbs.db", "train/.DS_Store", "__MACOSX/train/._a.mp4"))),
    ("folders: a class folder without videos", 0, "class folder train/jump holds no video",
     folders(lambda root: (root / "train" / "jump").mkdir())),
    ("folders: folders in a class folder", 0, "4 clips",
     folders(None, ("train/wave/day 1/x/a.mp4", *_FOLDERS[1:]))),
    ("folders: a folder linked into itself", 0, "4 clips", folders(circle)),
    ("folders: a linked folder of videos", 0, "5 clips", folders(linked)),
    ("folders: capitals in split folders and suffixes", 0, "4 clips",
     folders(None, ("Train/wave/a.MP4", "Train/sit/b.Mp4", "TEST/wave/c.MP4", "TEST/sit/d.mp4"))),
    ("folders: a class in other capitals", 2, "labels 'Wave' .* and 'wave' .* differ only in case",
     folders(None, ("train/wave/a.mp4", "train/sit/b.mp4", "test/Wave/c.mp4", "test/sit/d.mp4"))),
    ("folders: an accent written in two ways", 2, "differ only in case, spaces or accents",
     folders(None, ("train/\u00e9/a.mp4", "train/sit/b.mp4", "test/e\u0301/c.mp4", "test/sit/d.mp4"))),
    ("folders: a video beside the class folders", 0, "left out 1 videos that lie in no class folder: x.mp4",
     folders(moved("train/wave/a.mp4", "train/x.mp4"), ("train/wave/z.mp4", *_FOLDERS))),
    ("Kinetics: Windows line ends, byte order mark", 0, "2 clips", kinetics(list=crlf(_K + _K_ROWS))),
    ("Kinetics: empty lines", 0, "2 clips", kinetics(list=_K + "\n\n" + _K_ROWS.replace("\n", "\n\n"))),
    ("Kinetics: spaces after commas", 0, "2 clips", kinetics(list=(_K + _K_ROWS).replace(",", ", "))),
    ("Kinetics: ids with a suffix", 0, "2 clips", kinetics(list=_K + _K_ROWS.replace("aaa", "aaa.mp4"))),
    ("Kinetics: videos in folders of their class", 0, "2 clips",
     kinetics(None, ("wave/aaa_000000_000001.mp4", "sit/bbb_000000_000001.mp4"))),
    ("Kinetics: a hidden list beside", 0, "2 clips", layout(
        {"train.csv": _K + _K_ROWS}, ("aaa_000000_000001.mp4", "bbb_000000_000001.mp4"))(hidden("._train.csv"))),
    ("Kinetics: a row twice", 2, "duplicate: .* the same bytes", kinetics(list=_K + _K_ROWS + _K_ROWS)),
    ("Kinetics: two labels for a clip", 2, "line 4: aaa is 'sit' here and 'wave' in line 2",
     kinetics(list=_K + _K_ROWS + "sit,aaa,0,1,train\n")),
    ("Kinetics: a video that is gone", 2, "broken: video .*aaa.mp4 .*does not exist",
     kinetics(None, ("bbb_000000_000001.mp4",))),
    ("Kinetics: a row without an id", 2, "line 2: youtube_id is empty", kinetics(list=_K + "wave,,0,1,train\n")),
    ("Kinetics: another folder of videos", 2, "videos' folder elsewhere does not exist", kinetics(),
     ("--videos", "elsewhere")),
    ("UCF101: Windows line ends, byte order mark", 0, "4 clips",
     ucf(classInd=crlf("1 Wave\n2 Sit\n"), trainlist01=crlf(_U_TRAIN))),
    ("UCF101: empty lines and spaces at the ends", 0, "4 clips", ucf(trainlist01=_U_TRAIN.replace("\n", "  \n\n"))),
    ("UCF101: tabs", 0, "4 clips", ucf(trainlist01=_TABS)),
    ("UCF101: backslashes", 0, "4 clips", ucf(trainlist01=_U_TRAIN.replace("/", "\\"))),
    ("UCF101: classes counted from 0 in both", 0, "4 clips",
     ucf(classInd="0 Wave\n1 Sit\n", trainlist01=_U_TRAIN.replace(" 1", " 0").replace(" 2", " 1"))),
    ("UCF101: classes counted from 0 in one", 2, "trainlist01.txt, line 1: .*names no class of classInd.txt",
     ucf(trainlist01=_U_TRAIN.replace(" 1", " 0").replace(" 2", " 1"))),
    ("UCF101: a number of another class", 2, "line 2: .* is in the folder of 'Sit', but 1 is 'Wave'",
     ucf(trainlist01=_U_TRAIN.replace(" 2", " 1"))),
    ("UCF101: a number of two classes", 2, "classInd.txt, line 2: 1 is 'Sit' here and 'Wave' before",
     ucf(classInd="1 Wave\n1 Sit\n")),
    ("UCF101: a class in other capitals", 2, r"names no class of classInd.txt \(did you mean 'Wave'",
     ucf(testlist01=f"wave/{_UCF[2]}\n")),
    ("UCF101: encoded again as .mp4", 0, "4 clips",
     ucf(None, tuple(f"{name.split('_')[1]}/{name.replace('.avi', '.mp4')}" for name in _UCF))),
    ("UCF101: names without a suffix", 0, "4 clips", ucf(trainlist01=_U_TRAIN.replace(".avi", ""))),
    ("UCF101: a line twice", 2, "duplicate: .* the same bytes", ucf(trainlist01=_U_TRAIN + _U_TRAIN)),
    ("UCF101: no classInd.txt", 2, "holds no classInd.txt", ucf(classInd=None)),
    ("HMDB51: Windows line ends, byte order mark", 0, "4 clips",
     hmdb(wave_test_split1=crlf("film1_wave_u_0.avi 1\nfilm2_wave_u_0.avi 2\n"))),
    ("HMDB51: tabs and empty lines", 0, "4 clips",
     hmdb(wave_test_split1="film1_wave_u_0.avi\t1 \n\nfilm2_wave_u_0.avi\t2\n")),
    ("HMDB51: names without a suffix", 0, "4 clips",
     hmdb(wave_test_split1="film1_wave_u_0 1\nfilm2_wave_u_0 2\n")),
    ("HMDB51: encoded again as .mp4", 0, "4 clips",
     hmdb(None, tuple(f"{name.split('_')[1]}/{name.replace('.avi', '.mp4')}" for name in _HMDB))),
    ("HMDB51: a hidden list beside", 0, "4 clips", hmdb(hidden("._wave_test_split1.txt"))),
    ("HMDB51: a video for training and test", 2,
     "line 2: film1_wave_u_0 is '2 .test.' here and '1 .training.' in line 1",
     hmdb(wave_test_split1="film1_wave_u_0.avi 1\nfilm1_wave_u_0.avi 2\n")),
    ("HMDB51: a line without a mark", 2, "line 1: 'film1_wave_u_0.avi' is not",
     hmdb(wave_test_split1="film1_wave_u_0.avi\n")),
    ("HMDB51: a video that is gone", 2, "film1_wave_u_0.avi does not exist",
     hmdb(None, tuple(f"{name.split('_')[1]}/{name}" for name in _HMDB[1:]))),
    ("HMDB51: a fold that is not there", 2, "has no .*_test_split3.txt", hmdb(), ("--fold", "3")),
    ("Something-Something: byte order mark", 0, "4 clips", something(train=crlf(json.dumps(_S_TRAIN)))),
    ("Something-Something: ids that are numbers", 0, "4 clips",
     something(train=json.dumps([{**row, "id": int(row["id"])} for row in _S_TRAIN]))),
    ("Something-Something: ids with a suffix", 0, "4 clips",
     something(train=json.dumps([{**row, "id": f"{row['id']}.webm"} for row in _S_TRAIN]))),
    ("Something-Something: labels.json the other way round", 0, "4 clips",
     something(labels=json.dumps({number: label for label, number in _S_LABELS.items()}))),
    ("Something-Something: Windows line ends in the answers", 0, "4 clips",
     something(test_answers=crlf("4;Lifting it\n"))),
    ("Something-Something: answers with commas", 2, "test-answers.csv, line 1: '4,Lifting it' is not 'id;class'",
     something(test_answers="4,Lifting it\n")),
    ("Something-Something: a class in other capitals", 2,
     r"train.json, entry 1: class 'pushing it' is not in labels.json \(did you mean 'Pushing it'",
     something(train=json.dumps([{**_S_TRAIN[0], "template": "pushing [it]"}]))),
    ("Something-Something: a JSON object a line", 2, "train.json is not valid JSON: line 2",
     something(train="\n".join(map(json.dumps, _S_TRAIN)))),
    ("Something-Something: an entry without a template", 2, "train.json, entry 2: id or template is missing",
     something(train=json.dumps([_S_TRAIN[0], {"id": "2"}]))),
    ("Something-Something: a hidden list beside", 0, "4 clips", something(hidden("._train.json", "._labels.json"))),
    ("Something-Something: a video that is gone", 2, "1.webm does not exist",
     something(None, ("2.mp4", "3.mp4", "4.mp4"))),
    ("COCO: byte order mark", 0, "2 clips", boxes(None, crlf)),
    ("COCO: backslashes", 0, "2 clips",
     boxes(videos=[{**row, "file_name": row["file_name"].replace("/", "\\")} for row in _COCO["videos"]])),
    ("COCO: an image's id twice", 2, "two entries of 'images' have the id 1",
     boxes(images=[*_COCO["images"], _COCO["images"][0]])),
    ("COCO: a video that is gone", 2, "clips/x.mp4 does not exist",
     boxes(videos=[{**_COCO["videos"][0], "file_name": "clips/x.mp4"}, _COCO["videos"][1]])),
    ("COCO: an image of no video", 2, "image 1 has an unknown video_id 7",
     boxes(images=[{**_COCO["images"][0], "video_id": 7}, _COCO["images"][1]])),
    ("COCO: an image without its place", 2, "image 1 of video 1 has no frame_index",
     boxes(images=[{"id": 1, "video_id": 1}, _COCO["images"][1]])),
    ("COCO: a category's id as text", 2, "annotation 1 has an unknown category_id '1'",
     boxes(annotations=[{**_COCO["annotations"][0], "category_id": "1"}])),
    ("COCO: a comma too many", 2, "is not valid JSON: line 1", boxes(None, lambda text: text[:-1].encode() + b",}")),
    ("COCO: a misspelt split", 2, "unknown split 'tets'",
     boxes(videos=[_COCO["videos"][0], {**_COCO["videos"][1], "split": "tets"}])),
    ("COCO: a category in other capitals", 2, "labels 'Car' .* and 'car' .* differ only in case",
     boxes(categories=[{"id": 1, "name": "car"}, {"id": 2, "name": "Car"}])),
    ("shards: a name twice", 2, "holds a.mp4 twice", shard("train.tar", lambda: packed(("a", "a")))),
    ("shards: compressed", 2, "is compressed, so no clip in it can be read alone",
     shard("train.tar.gz", lambda: gzip.compress(packed()))),
    ("shards: compressed, named .tar", 2, "compressed by gzip, a shard is a plain tar",
     shard("train.tar", lambda: gzip.compress(packed()))),
    ("shards: cut off in the last clip", 2, r"train.tar is damaged or no tar \(unexpected end of data",
     shard("train.tar", lambda: packed()[:-11000])),
    ("shards: hidden files inside", 0, "2 clips", shard("train.tar", lambda: packed(more={"._0.mp4": _MACOS}))),
    ("shards: a hidden shard beside", 0, "2 clips",
     lambda folder: written(folder, {"train.tar": packed(), "._train.tar": _MACOS}, ())),
    ("shards: labels that are numbers", 0, "2 clips", shard("train.tar", lambda: packed(label=lambda n: {"label": n}))),
    ("shards: folders, spaces and other letters inside", 0, "2 clips",
     shard("train.tar", lambda: packed(("x/a b", "x/\u4e2d")))),
    ("shards: a description that is no JSON", 2, "train.tar: c.json is not valid JSON",
     shard("train.tar", lambda: packed(more={"c.json": b"{"}))),
    ("shards: one of the pattern is not there", 2, "train-1.tar does not exist",
     shard("train-0.tar", packed, "train-{0..1}.tar")),
    ("remote shard: the connection drops midway once", 0, "2 clips", remote("train.tar", packed, "cut")),
    ("remote shard: it drops midway, and ranges are not known", 0, "2 clips",
     remote("train.tar", packed, "wholecut", "whole", "good")),
    ("remote shard: it drops each time", 2, "train.tar broke off at byte 0 of .* after 5 tries",
     remote("train.tar", packed, "drop!")),
    ("remote shard: an error of the server, then none", 0, "2 clips", remote("train.tar", packed, "500", "503")),
    ("remote shard: an error of the server each time", 2, "cannot be had after 5 tries .the server says 500",
     remote("train.tar", packed, "500!")),
    ("remote shard: not found", 2, "train.tar: the server says 404 .*check the URL",
     remote("train.tar", packed, "404!")),
    ("remote shard: forbidden", 2, "the server says 403", remote("train.tar", packed, "403!")),
    ("remote shard: a page instead", 2, "is damaged or no tar",
     remote("train.tar", lambda: b"<html>log in</html>" * 99)),
    ("remote shard: a page instead of the index", 2, "index.json is not valid JSON",
     remote("index.json", lambda: b"<html>log in</html>")),
    ("remote shard: compressed", 2, "is compressed, so no clip", remote("train.tar.gz", packed)),
)  # fmt: skip
