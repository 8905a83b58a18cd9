"""Derive the boxes of the committed footage by background subtraction; run once, checked by eye, committed.

    python benchmarks/make_boxes.py FOLDER_OF_SAMPLE_VIDEOS [FOLDER_FOR_CONTACT_SHEETS]

writes ``toolkit/assets/footage/boxes.json`` (COCO, one file with videos and splits). Per source video: a background
is the median over frames in which a place is empty; each frame of a clip is brought to the background's exposure;
what differs more than a threshold, closed and opened by morphology, falls into connected components; components of a
credible size are boxes; boxes are linked to tracks by overlap, short tracks go, gaps of one or two frames are filled.
Source: github intel-iot-devkit/sample-videos at 5797888, CC BY 4.0.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from benchmarks.make_footage import OUT, sampled
from toolkit.files import write_text
from toolkit.video import read_frames

Picture = npt.NDArray[np.uint8]
Box = tuple[int, int, int, int]  # left, top, right, bottom; right and bottom not included
LABELS = ("person", "car", "bottle")


@dataclass(frozen=True, slots=True)
class Scene:
    """How one source video is read.

    ``empty``: stretches of frames (at 10 a second) and the columns that are free of objects there.
    """

    video: str
    label: str
    mask: Callable[[Picture, Picture], Picture]
    close: tuple[int, int]
    smallest: tuple[int, int]
    empty: tuple[tuple[int, int, int, int], ...] = ()


def differs(frame: Picture, background: Picture) -> Picture:
    """Where any channel differs clearly; on the coloured floor a mere darkening is a shadow."""
    gain = np.median(background.astype(np.float32) / np.maximum(frame, 1))
    scaled, empty = np.clip(frame * gain, 0, 255), background.astype(np.float32)
    share = (scaled + 8) / (empty + 8)
    shadow = (share.max(-1) - share.min(-1) < 0.3) & (share.mean(-1) > 0.35) & (empty.max(-1) - empty.min(-1) > 40)
    return np.asarray((np.abs(scaled - empty).max(-1) > 45) & ~shadow, np.uint8)


def brighter(frame: Picture, background: Picture) -> Picture:
    """Where the frame is brighter or more coloured than the tarmac: cars are, while their shadows are not."""
    gain = np.median(background.astype(np.float32) / np.maximum(frame, 1))
    change = np.clip(frame * gain, 0, 255) - background
    return np.asarray((change.min(-1) > 20) | (change.max(-1) - change.min(-1) > 28), np.uint8)


def bluer(frame: Picture, background: Picture) -> Picture:
    """Where the frame is bluer than the background: bottles are, while shadows, hands and sleeves are not."""

    def blue(picture: Picture) -> npt.NDArray[np.float32]:
        smooth = cv2.GaussianBlur(picture, (3, 3), 0).astype(np.float32)
        return np.asarray(smooth[..., 0] - smooth[..., 2])

    return np.asarray(blue(frame) - blue(background) > 11, np.uint8)


SCENES = (
    Scene(
        "one-by-one-person-detection",
        "person",
        differs,
        (5, 21),
        (10, 12),
        ((50, 58, 0, 320), (1210, 1224, 0, 320), (1320, 1324, 0, 320)),
    ),
    Scene("car-detection", "car", brighter, (11, 17), (18, 8)),
    Scene("bottle-detection", "bottle", bluer, (5, 9), (12, 14), ((185, 215, 0, 210), (326, 342, 210, 320))),
)


def background_of(scene: Scene, frames: Sequence[Picture]) -> Picture:
    """The picture without objects (H, W, 3): the median of the frames, or of those known to be empty."""
    stack = np.stack(frames)
    whole = np.asarray(np.median(stack[::3], axis=0), np.uint8)
    for left, right in {(left, right) for _, _, left, right in scene.empty}:
        free = [stack[a:b, :, left:right] for a, b, *columns in scene.empty if columns == [left, right]]
        whole[:, left:right] = np.median(np.concatenate(free), axis=0)
    return whole


def components(scene: Scene, frame: Picture, background: Picture) -> list[Box]:
    """Boxes of the connected components of a credible size."""
    mask = cv2.morphologyEx(scene.mask(frame, background), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    mask = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((scene.close[1], scene.close[0]), np.uint8))
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    found = []
    for x, y, width, height, area in stats[1:].tolist():
        if width >= scene.smallest[0] and height >= scene.smallest[1] and area > 0.3 * width * height:
            found.append((x, y, x + width, y + height))
    if scene.label == "person":  # they come one by one; what is small and inside the picture is a shadow on the wall
        rows, cols = mask.shape
        found = [box for box in found if box[3] - box[1] > 60 or box[3] > rows - 3 or box[2] > cols - 3]
        found = sorted(found, key=lambda box: (box[2] - box[0]) * (box[3] - box[1]))[-1:]
    return found


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    width = max(0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0, min(a[3], b[3]) - max(a[1], b[1]))
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def tracks_of(boxes: Sequence[list[Box]], shortest: int = 4, gap: int = 3) -> list[dict[int, Box]]:
    """Link boxes of neighbouring frames by overlap; short tracks go, gaps under ``gap`` frames are filled."""
    tracks: list[dict[int, Box]] = []
    for index, found in enumerate(boxes):
        alive = [track for track in tracks if index - max(track) <= gap]
        pairs = sorted(
            ((overlap(track[max(track)], box), place, box) for place, track in enumerate(alive) for box in found),
            reverse=True,
        )
        used: set[int] = set()
        taken: set[Box] = set()
        for share, place, box in pairs:
            if share > 0.2 and place not in used and box not in taken:
                alive[place][index] = box
                used.add(place)
                taken.add(box)
        tracks += [{index: box} for box in found if box not in taken]
    return [_filled(track) for track in tracks if len(track) >= shortest]


def _filled(track: dict[int, Box]) -> dict[int, Box]:
    known = sorted(track)
    sides = [np.interp(range(known[0], known[-1] + 1), known, [track[i][side] for i in known]) for side in range(4)]
    rows = np.round(np.stack(sides, 1)).astype(int).tolist()
    return {known[0] + offset: (row[0], row[1], row[2], row[3]) for offset, row in enumerate(rows)}


def sheet(path: Path, frames: Sequence[Picture], tracks: Sequence[dict[int, Box]]) -> None:
    """Every second frame with its boxes on one picture, for the eye."""
    cells = []
    for index in range(0, len(frames), 2):
        cell = frames[index].copy()
        cv2.putText(cell, str(index), (4, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (0, 0, 255), 1)
        for number, track in enumerate(tracks):
            if index in track:
                left, top, right, bottom = track[index]
                colour = ((0, 220, 0), (255, 0, 255), (0, 200, 255))[number % 3]
                cv2.rectangle(cell, (left, top), (right - 1, bottom - 1), colour, 1)
        cells.append(cell)
    cells += [np.zeros_like(cells[0])] * (-len(cells) % 8)
    cv2.imwrite(str(path), np.vstack([np.hstack(cells[start : start + 8]) for start in range(0, len(cells), 8)]))


def main(source: Path, sheets: Path | None) -> None:
    """Derive and write."""
    videos, images, annotations = [], [], []
    for scene in SCENES:
        background = background_of(scene, sampled(source / f"{scene.video}.mp4"))
        if sheets is not None:
            sheets.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(sheets / f"background-{scene.label}.png"), background)
        for path in sorted(OUT.glob(f"*-{scene.video.split('-')[0]}-*.mp4")):
            frames = [frame for _, frame in read_frames(path)]
            tracks = tracks_of([components(scene, frame, background) for frame in frames])
            video = len(videos) + 1
            height, width = frames[0].shape[:2]
            videos.append({"id": video, "file_name": path.name, "split": path.name.split("-")[0],
                           "width": width, "height": height})  # fmt: skip
            first = len(images) + 1
            images += [{"id": first + i, "video_id": video, "frame_index": i, "width": width, "height": height}
                       for i in range(len(frames))]  # fmt: skip
            for number, track in enumerate(tracks, start=1):
                for index, (left, top, right, bottom) in track.items():
                    annotations.append({"id": len(annotations) + 1, "image_id": first + index, "track_id": number,
                                        "category_id": LABELS.index(scene.label) + 1, "iscrowd": 0,
                                        "bbox": [left, top, right - left, bottom - top],
                                        "area": (right - left) * (bottom - top)})  # fmt: skip
            if sheets is not None:
                sheet(sheets / f"{path.stem}.png", frames, tracks)
            print(path.name, len(frames), "frames", len(tracks), "tracks", sum(len(t) for t in tracks), "boxes")
    categories = [{"id": index, "name": name} for index, name in enumerate(LABELS, start=1)]
    write_text(OUT / "boxes.json", _compact(videos, images, annotations, categories))


def _compact(videos: list[dict[str, object]], images: list[dict[str, object]],
             annotations: list[dict[str, object]], categories: list[dict[str, object]]) -> str:  # fmt: skip
    """One entry a line, so that a change shows."""
    tables = {"videos": videos, "images": images, "annotations": annotations, "categories": categories}
    rows = {name: ",\n".join(json.dumps(row, separators=(",", ":")) for row in table) for name, table in tables.items()}
    return "{" + ",\n".join(f'"{name}": [\n{text}\n]' for name, text in rows.items()) + "}\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
