"""From the logits of each step to what the camera loop says now: a smoothed class answer, or a detector's boxes."""

from collections import Counter, deque

import numpy as np

from deploy.detect import found_in
from toolkit.bundle import Manifest
from toolkit.contract import Answer, Array, Contract, chosen, probabilities
from toolkit.detection import Found, to_frame

__all__ = ["DetectedBoxes", "SmoothedAnswer"]


class SmoothedAnswer:
    """The smoothed answer: probabilities of the mean of the last logits, warm-up left out."""

    def __init__(self, window: int, warmup: int, answer: Answer = "one") -> None:
        self._kind: Answer = answer
        self._recent: deque[Array] = deque(maxlen=window)
        self._warmup = self._ignore = warmup
        self.probabilities: Array | None = None
        self.history: deque[tuple[int, float]] = deque(maxlen=240)
        self.counts: Counter[int] = Counter()
        self.answered = 0

    def begin_again(self) -> None:
        """Say nothing until the model has warmed up once more; what was counted stays."""
        self._ignore = self._warmup
        self._recent.clear()
        self.history.clear()
        self.probabilities = None

    def on_frame(self, manifest: Manifest, rows: int, cols: int) -> Found | None:
        """A detector's boxes; a classifier has none."""
        return None

    def add(self, logits_K: Array) -> None:
        """Take in one step's logits (K,)."""
        if self._ignore:
            self._ignore -= 1
            return
        self._recent.append(logits_K)
        self.probabilities = probabilities(np.asarray(np.mean(self._recent, axis=0), np.float32), self._kind)
        best = int(self.probabilities.argmax())
        self.history.append((best, float(self.probabilities[best])))
        self.counts.update(chosen(self.probabilities, self._kind))
        self.answered += 1


class DetectedBoxes(SmoothedAnswer):
    """A detector's answer: the boxes of the last step; as probabilities the best score of each class."""

    def __init__(self, contract: Contract) -> None:
        super().__init__(1, contract.warmup)
        self._contract = contract
        self.found: Found | None = None

    def begin_again(self) -> None:
        """As a classifier does; the boxes of before are gone."""
        super().begin_again()
        self.found = None

    def add(self, logits_K: Array) -> None:
        """Take in one step's answer (N,), the detector's whole map."""
        if self._ignore:
            self._ignore -= 1
            return
        self.found = found_in(logits_K, self._contract)
        self.probabilities = np.zeros(self._contract.classes, np.float32)
        np.maximum.at(self.probabilities, self.found.labels, self.found.scores)
        best = int(self.probabilities.argmax())
        self.history.append((best, float(self.probabilities[best])))
        self.counts.update(set(self.found.labels.tolist()))
        self.answered += 1

    def on_frame(self, manifest: Manifest, rows: int, cols: int) -> Found | None:
        """The boxes in pixels of a frame of ``rows`` x ``cols``."""
        if self.found is None:
            return None
        boxes = to_frame(self.found.boxes, manifest.preprocess, rows, cols)
        return Found(boxes, self.found.scores, self.found.labels)
