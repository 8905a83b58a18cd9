"""The converted ImageNet backbone answers as the TFLite file it came from does, on real frames."""

from pathlib import Path

import numpy as np
import pytest
import torch

from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from toolkit.recipe import StudentConfig
from toolkit.video import read_frames
from train.models.mobilenet_v2 import IMAGENET, MEAN, STD, load_imagenet, read_convolutions
from train.models.student import build_student

FOOTAGE = Path(__file__).parents[2] / "toolkit" / "assets" / "footage"
PICTURE = Preprocess(size=(224, 224), mean=MEAN, std=STD)


def _pictures() -> list[np.ndarray]:
    """Every 40th frame of the real videos that come with the package."""
    return [
        PICTURE.picture(frame)
        for video in sorted(FOOTAGE.glob("*.mp4"))
        for index, (_, frame) in enumerate(read_frames(video))
        if index % 40 == 5
    ][:12]


def _tflite(pictures: list[np.ndarray]) -> np.ndarray:
    """Probabilities (N, 1001) of the int8 file itself, run by LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=str(IMAGENET))
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    answers = []
    for picture in pictures:
        scale, zero = source["quantization"]
        levels = np.round(PICTURE.normalise(picture)[None].transpose(0, 2, 3, 1) / scale + zero)
        interpreter.set_tensor(source["index"], np.clip(levels, 0, 255).astype(np.uint8))
        interpreter.invoke()
        answers.append(interpreter.get_tensor(target["index"])[0] * target["quantization"][0])
    return np.stack(answers)


def test_the_backbone_answers_like_the_tflite_file_on_real_frames() -> None:
    model = build_student(StudentConfig(width=1.0, temporal="none"), 1001, (3, 224, 224), 1).eval()
    load_imagenet(model)
    pictures = _pictures()
    assert len(pictures) >= 6
    frames = torch.from_numpy(np.stack([PICTURE.normalise(picture) for picture in pictures]))
    with torch.no_grad():
        ours = torch.softmax(model.still(frames), 1).numpy()
    theirs = _tflite(pictures)
    correlation = [np.corrcoef(a, b)[0, 1] for a, b in zip(ours, theirs, strict=True)]
    sure = theirs.max(1) > 0.2  # below that int8 rounding decides between near ties
    assert np.median(correlation) > 0.98
    assert (ours.argmax(1) == theirs.argmax(1))[sure].all()


def test_random_weights_do_not_pass_that_comparison() -> None:
    model = build_student(StudentConfig(width=1.0, temporal="none"), 1001, (3, 224, 224), 1).eval()
    pictures = _pictures()[:3]
    frames = torch.from_numpy(np.stack([PICTURE.normalise(picture) for picture in pictures]))
    with torch.no_grad():
        ours = torch.softmax(model.still(frames), 1).numpy()
    assert np.median([np.corrcoef(a, b)[0, 1] for a, b in zip(ours, _tflite(pictures), strict=True)]) < 0.5


def test_the_file_holds_the_53_convolutions_of_mobilenet_v2() -> None:
    found = read_convolutions(IMAGENET)
    assert len(found) == 53
    assert found[0].weight.shape == (32, 3, 3, 3)
    assert found[1].weight.shape == (32, 1, 3, 3)


def test_a_student_of_another_width_is_told_so() -> None:
    with pytest.raises(UserError, match=r"student\.width=1\.0"):
        load_imagenet(build_student(StudentConfig(width=0.5), 2, (3, 32, 32), 4))


def test_missing_or_wrong_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="do not exist"):
        read_convolutions(tmp_path / "none.tflite")
    (tmp_path / "bad.tflite").write_bytes(b"not a model")
    with pytest.raises(UserError, match="not a readable TFLite file"):
        read_convolutions(tmp_path / "bad.tflite")


def test_pretrained_batch_norms_keep_their_statistics_in_training() -> None:
    config = StudentConfig(width=1.0, blocks=4, readout="motion", pretrained=IMAGENET)
    model = build_student(config, 2, (3, 32, 32), 4)
    load_imagenet(model)
    before = model.stem[1].running_mean.clone()  # type: ignore[operator]
    model.train()(torch.randn(2, 4, 3, 32, 32))
    assert torch.equal(before, model.stem[1].running_mean)  # type: ignore[arg-type]
