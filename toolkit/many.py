"""How good answers are when a clip may have any number of labels: average precision, and every label right at once.

Mean average precision is the mean over classes of the area under precision against recall by steps, without
interpolation, as scikit-learn defines it. Shapes: N clips, K classes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.statistics import wilson

__all__ = ["average_precision", "judge_many", "mean_known", "mean_precision", "precisions", "share"]


def average_precision(scores: npt.NDArray[Any], positive: npt.NDArray[np.bool_]) -> float | None:
    """Sum over thresholds of precision times the recall gained there; None without a positive. Both are (N,).

    >>> average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]))
    0.8333333333333333
    """
    if not positive.any():
        return None
    order = np.argsort(-scores, kind="stable")
    # Equal scores are one threshold: precision is that after all of them.
    last = np.append(np.diff(scores[order]) != 0, True)
    found = np.cumsum(positive[order])[last]
    precision, recall = found / (np.flatnonzero(last) + 1), found / positive.sum()
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def mean_precision(scores_NK: npt.NDArray[Any], true_NK: npt.NDArray[Any]) -> float:
    """Mean over the classes that occur."""
    return mean_known(precisions(scores_NK, true_NK))


def precisions(scores_NK: npt.NDArray[Any], true_NK: npt.NDArray[Any]) -> list[float | None]:
    """Average precision of each class."""
    return [average_precision(scores_NK[:, k], true_NK[:, k] > 0.5) for k in range(scores_NK.shape[1])]


def mean_known(values: Sequence[float | None]) -> float:
    """Mean of the values there are; 0 without any."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else 0.0


def share(part: Any, whole: Any) -> float | None:
    """None of nothing."""
    return float(part) / float(whole) if whole else None


def judge_many(logits_NK: npt.NDArray[Any], true_NK: npt.NDArray[Any], labels: Sequence[str]) -> dict[str, Any]:
    """``clips``, ``map``, ``exact`` (every label right at probability 0.5) with its interval, ``f1``, ``per_class``."""
    found, true = logits_NK > 0, true_NK > 0.5
    hits, by_class = (found & true).sum(0), precisions(logits_NK, true)
    exact = int((found == true).all(1).sum())
    low, high = wilson(exact, len(true))
    return {
        "clips": len(true), "map": mean_known(by_class), "exact": exact / len(true), "ci_low": low, "ci_high": high,
        "f1": share(2 * hits.sum(), found.sum() + true.sum()),
        "per_class": {
            label: {
                "clips": int(true[:, k].sum()), "recall": share(hits[k], true[:, k].sum()),
                "precision": share(hits[k], found[:, k].sum()), "ap": by_class[k],
            }
            for k, label in enumerate(labels)
        },
    }  # fmt: skip
