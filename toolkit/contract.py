"""The stream contract: what a model takes and gives for one frame, and what it remembers in between.

A stream model is a pure function ``step(frame, states) -> (logits, states')``. All state starts at zero,
has static shape and is an explicit graph input and output, so every runtime can run it and nothing hides.
A clip model answers for ``frames`` frames at once and is deployed through a sliding window.
"""

from typing import Literal, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, model_validator

from toolkit.detection import DetectionSpec
from toolkit.errors import UserError

__all__ = ["Answer", "Array", "Contract", "Placement", "Session", "StateSpec", "chosen", "clip_answer", "clip_logits",
           "probabilities", "softmax"]  # fmt: skip

Array = npt.NDArray[np.float32]
#: How many labels a clip has: exactly one (softmax), or any number (each label its own logistic, named above 0.5).
Answer = Literal["one", "many"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class StateSpec(_Frozen):
    """One tensor of stream state: graph input ``name``, graph output ``name + "_next"``, shape without batch."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    shape: tuple[int, ...]

    @property
    def output(self) -> str:
        """Name of the graph output that carries the next value of this state."""
        return f"{self.name}_next"


class Contract(_Frozen):
    """Names and shapes of a model's inputs and outputs, without the batch dimension.

    ``stream``: input ``frame`` (3, H, W) and one input per state; outputs ``logits`` (classes,) and one
    ``<state>_next`` per state. ``clip``: input ``clip`` (3, T, H, W) with T = ``frames``; output ``logits``.
    ``frames`` is the clip length the model was trained on; the first ``warmup`` answers of a stream, while its
    state fills, do not count in the answer for a whole clip. A detector's ``logits`` are (answer_width,), read as
    ``detection`` says. ``answer`` tells whether a clip has one label or any number of them.
    """

    kind: Literal["stream", "clip"] = "stream"
    frame: tuple[int, int, int]
    classes: int = Field(ge=1)
    frames: int = Field(default=16, ge=1)
    warmup: int = Field(default=0, ge=0)
    states: tuple[StateSpec, ...] = ()
    detection: DetectionSpec | None = None
    answer: Answer = "one"

    @model_validator(mode="after")
    def _clip_models_have_no_state(self) -> Self:
        if self.kind == "clip" and self.states:
            raise ValueError("a clip model carries no stream state")
        if len({state.name for state in self.states}) != len(self.states):
            raise ValueError("state names must be unique")
        return self

    @property
    def input_names(self) -> list[str]:
        """Graph inputs in order: the frame (or clip), then the states."""
        return ["clip"] if self.kind == "clip" else ["frame", *(state.name for state in self.states)]

    @property
    def output_names(self) -> list[str]:
        """Graph outputs in order: the logits, then the next states."""
        return ["logits", *(state.output for state in self.states)]

    @property
    def answer_width(self) -> int:
        """Numbers in one answer: one logit per class, or a detector's whole map."""
        return self.classes if self.detection is None else self.detection.width(self.classes)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of the first graph input without batch: (3, H, W) or (3, T, H, W)."""
        channels, height, width = self.frame
        return self.frame if self.kind == "stream" else (channels, self.frames, height, width)

    def zeros(self, batch: int = 1) -> dict[str, Array]:
        """Fresh stream state: a dict of zero float32 arrays (B, *shape)."""
        return {s.name: np.zeros((batch, *s.shape), np.float32) for s in self.states}

    def check_input(self, frame: Array, batch: int = 1) -> Array:
        """Return the frame (B, 3, H, W), or clip (B, 3, T, H, W), as contiguous float32.

        Raises:
            UserError: wrong shape, wrong dtype, or values that are not finite.
        """
        want = (batch, *self.input_shape)
        name = self.input_names[0]
        if frame.shape != want:
            raise UserError(f"{name} has shape {tuple(frame.shape)}, the model takes {want}")
        if frame.dtype != np.float32:
            raise UserError(
                f"{name} has dtype {frame.dtype}, the model takes float32 (apply the bundle's preprocessing)"
            )
        # A NaN or infinity anywhere makes the sum non-finite: one pass, no temporary array.
        if not np.isfinite(frame.sum()):
            raise UserError(f"{name} holds NaN or infinite values: check the camera and the preprocessing")
        return np.ascontiguousarray(frame)


class Placement(_Frozen):
    """What really ran where: the runtime's own account, so that a silent fallback is visible."""

    runtime: str
    device: str
    precision: str
    threads: int | None = None
    detail: dict[str, str] = {}


@runtime_checkable
class Session(Protocol):
    """An opened artefact plus its stream state. Not thread-safe: one session per thread."""

    contract: Contract

    def step(self, frame_BCHW: Array) -> Array:
        """Advance by one frame: float32 (B, 3, H, W) -> logits float32 (B, answer_width)."""
        ...

    def reset(self) -> None:
        """Forget: the stream state is zero again."""
        ...

    def close(self) -> None:
        """Free the runtime's resources; closing twice is harmless, stepping afterwards is a UserError."""
        ...

    def placement(self) -> Placement:
        """Tell what ran where."""
        ...


def softmax(logits: Array) -> Array:
    """Probabilities along the last axis, computed stably in float32."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True), np.float32)


def probabilities(logits: Array, answer: Answer = "one") -> Array:
    """What the logits (..., K) say: shares of one, or with many labels a probability of each, which need not add up."""
    if answer == "one":
        return softmax(logits)
    return np.asarray(np.exp(-np.logaddexp(0, -logits)), np.float32)  # logistic without overflow


def chosen(probabilities_K: Array, answer: Answer = "one") -> tuple[int, ...]:
    """The labels that are named: the most probable one, or all above 0.5, the most probable first."""
    order = np.argsort(-probabilities_K, kind="stable")
    return tuple(int(k) for k in (order[:1] if answer == "one" else order[probabilities_K[order] > 0.5]))


def clip_logits(logits_TK: Array, warmup: int = 0) -> Array:
    """The logits (K,) of a whole clip: the mean over its frames (T, K).

    The first ``warmup`` frames are left out, unless the clip has no other.
    """
    counted = logits_TK[min(warmup, len(logits_TK) - 1) :]
    return np.asarray(np.asarray(counted, np.float32).mean(axis=0), np.float32)


def clip_answer(logits_TK: Array, warmup: int = 0, answer: Answer = "one") -> Array:
    """The answer for a whole clip: probabilities (K,) from the mean of the per-frame logits (T, K)."""
    return probabilities(clip_logits(logits_TK, warmup), answer)
