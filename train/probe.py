"""Fit a motion readout on a frozen backbone: for a few hundred clips the strongest and the fastest training.

The readout is linear and a clip's answer is the mean of its frames' logits, so logistic regression on the clips'
mean features *is* the training of the streaming model. It is convex: no seed, no epochs. Features are
standardised, every group gets the same total variance, classes are balanced, and the scaling is folded back into
the weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from toolkit.errors import UserError
from toolkit.preprocess import Preprocess
from train.data.clips import normalise
from train.models.readout import MotionReadout
from train.models.student import StreamStudent

__all__ = ["STRENGTHS", "Probe", "choose_strength", "clip_means", "fit_probe", "install"]

#: Inverse regularisation strengths to choose from (as C in the usual notation).
STRENGTHS = (0.03, 0.1, 0.3, 1.0, 3.0)
_VARIANCE = 10.0

Groups = npt.NDArray[np.float64]  # (N clips, G groups, C channels)


@dataclass(frozen=True, slots=True)
class Probe:
    """weights (K, G, C) on raw mean features, bias (K,)."""

    weights: npt.NDArray[np.float64]
    bias: npt.NDArray[np.float64]

    def __call__(self, features: Groups) -> npt.NDArray[np.float64]:
        """Logits (N, K)."""
        return np.asarray(np.einsum("ngc,kgc->nk", features, self.weights) + self.bias)


def clip_means(
    student: StreamStudent, pictures_THWC: npt.NDArray[np.uint8], preprocess: Preprocess
) -> npt.NDArray[np.float64]:
    """Mean features of one clip after the warm-up: (G, C). A clip shorter than the warm-up uses its last frame."""
    readout = _readout(student)
    with torch.inference_mode():
        clip = normalise(pictures_THWC, preprocess)
        maps = torch.cat([student.backbone(part) for part in torch.split(clip, 16)])
        features = torch.stack(readout.clip_features(maps[None]), 1)
    counted = features[min(readout.depth, len(features) - 1) :]
    return np.asarray(counted.double().mean(0).numpy())


def fit_probe(features: Groups, labels: npt.NDArray[np.int64], classes: int, strength: float) -> Probe:
    """Class-balanced L2 logistic regression by L-BFGS in float64."""
    mean, deviation = features.mean(0), features.std(0)
    floor = 0.1 * np.median(deviation, axis=1, keepdims=True) + 1e-6
    scale = np.sqrt(_VARIANCE / features.shape[2]) / np.maximum(deviation, floor)
    # The optimum lies in the span of the clips: rotated into it there are at most N unknowns a class, not G * C.
    left, singular, right = np.linalg.svd(((features - mean) * scale).reshape(len(features), -1), full_matrices=False)
    x = torch.from_numpy(left * singular)
    y = torch.from_numpy(labels)
    counts = torch.bincount(y, minlength=classes).double()
    balance = (len(y) / (classes * counts.clamp(min=1)))[y]
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-8, line_search_fn="strong_wolfe")

    def objective() -> torch.Tensor:
        solver.zero_grad()
        losses = torch.nn.functional.cross_entropy(x @ weight.T + bias, y, reduction="none")
        # For two classes this symmetric form equals the usual one-vector form of the same strength.
        value = strength * (balance * losses).sum() + weight.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    solver.step(objective)  # type: ignore[no-untyped-call]
    raw = (weight.detach().numpy() @ right).reshape(classes, *mean.shape) * scale
    return Probe(raw, bias.detach().numpy() - np.einsum("kgc,gc->k", raw, mean))


def choose_strength(
    features: Groups, labels: npt.NDArray[np.int64], groups: Sequence[object], classes: int,
    strengths: Sequence[float] = STRENGTHS,
) -> float:  # fmt: skip
    """The strength with the best accuracy minus log loss, leaving out one group (fold, camera, person) at a time."""
    names = np.asarray(groups)

    def quality(strength: float) -> float:
        scores = []
        for held in np.unique(names):
            inner = names != held
            logits = fit_probe(features[inner], labels[inner], classes, strength)(features[~inner])
            shifted = logits - logits.max(1, keepdims=True)
            log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
            wanted = labels[~inner]
            scores.append((logits.argmax(1) == wanted).mean() + log_p[np.arange(len(wanted)), wanted].mean())
        return float(np.mean(scores))

    return max(strengths, key=quality)


def install(student: StreamStudent, probe: Probe) -> None:
    """Put the fitted weights into the student's readout."""
    readout = _readout(student)
    with torch.no_grad():
        for index, head in enumerate(readout.heads):
            assert isinstance(head, torch.nn.Linear)
            head.weight.copy_(torch.from_numpy(probe.weights[:, index]))
            if head.bias is not None:
                head.bias.copy_(torch.from_numpy(probe.bias))


def _readout(student: StreamStudent) -> MotionReadout:
    if not isinstance(student.readout, MotionReadout):
        raise UserError('a probe needs a student with student.readout = "motion"')
    return student.readout
