"""Few clips, many cameras: a motion readout fitted on a frozen ImageNet backbone by logistic regression.

With a few hundred clips this beats end-to-end training on cameras never seen, takes minutes on a laptop and has no
seed. The regularisation is chosen by leaving out groups of the training clips; validation only measures.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from toolkit.errors import UserError
from toolkit.files import writable_dir, write_bytes
from toolkit.progress import note, track
from toolkit.recipe import Recipe
from train.data.index import Clip
from train.data.opening import read_clip
from train.models.store import Model, build
from train.models.student import StreamStudent
from train.probe import choose_strength, clip_means, fit_probe, install
from train.stages.common import Data, card_of, run_stage, start_from

__all__ = ["probe"]

_FOLDS = 4


def probe(recipe: Recipe, out: Path) -> Path:
    """Fit the student's motion readout on the training clips; the backbone keeps its pretrained weights.

    Raises:
        UserError: the recipe's student is not a frozen backbone with a motion readout.
    """
    config = recipe.student
    if config.readout != "motion" or config.temporal != "none" or config.look_back or config.pretrained is None:
        raise UserError(
            'a probe needs student.pretrained = "imagenet", readout = "motion", temporal = "none" and look_back = '
            "false: start from  vidon train recipe probe"
        )

    def work(data: Data) -> Model:
        if data.index.multi_label:
            raise UserError(
                f"data {recipe.data.root}: a probe tells one label a clip, some have several or none: distil"
            )
        student = build(card_of(recipe, "student", data.index.labels))
        assert isinstance(student, StreamStudent)
        start_from(student, recipe)
        student.eval()
        clips = data.index.split("train")
        features, kept = _features(student, clips, recipe, out / "features")
        labels = np.array([data.index.labels.index(clips[index].label) for index in kept])
        folds = [_fold(clips[index].group) for index in kept]
        strength = choose_strength(features, labels, folds, len(data.index.labels))
        note(f"  probe: strength {strength} chosen over {len(set(folds))} folds of groups, {len(kept)} clips")
        install(student, fit_probe(features, labels, len(data.index.labels), strength))
        return student

    return run_stage("probe", recipe, ("student",), {}, out, "student", work)


def _features(
    student: StreamStudent, clips: Sequence[Clip], recipe: Recipe, cache: Path
) -> tuple[npt.NDArray[np.float64], list[int]]:
    """Mean features (N, G, C) of the readable clips and their places; each clip's are kept, so a cut run goes on."""
    writable_dir(cache)
    student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model = f"{recipe.student.model_dump_json()}{recipe.preprocess.model_dump_json()}"
    rows, kept = [], []
    for index, clip in enumerate(track(clips, "features", len(clips))):
        try:
            name = hashlib.sha256(f"{model}|{clip.name}|{_stamp(clip)}".encode()).hexdigest()[:24]
            file = cache / f"{name}.bin"
            if not file.is_file():
                pictures = read_clip(clip, recipe.preprocess)
                write_bytes(file, clip_means(student, pictures, recipe.preprocess).tobytes())
        except (UserError, OSError) as error:
            note(f"  left out: {error}")
            continue
        rows.append(np.frombuffer(file.read_bytes(), np.float64))
        kept.append(index)
    if not kept:
        raise UserError(f"data {recipe.data.root}: none of the {len(clips)} training videos can be read")
    groups = 3 * (len(recipe.student.lags) + len(recipe.student.bends))
    return np.stack(rows).reshape(len(rows), groups, -1), kept


def _stamp(clip: Clip) -> str:
    """What changes when the clip's bytes do."""
    if clip.member is not None and clip.member.url:
        return f"{clip.member.offset}|{clip.member.size}"
    stat = clip.path.stat()
    return f"{stat.st_size}|{stat.st_mtime_ns}"


def _fold(group: str) -> int:
    """Groups (one source video, one person) are never torn apart."""
    return int(hashlib.sha256(group.encode()).hexdigest()[:8], 16) % _FOLDS
