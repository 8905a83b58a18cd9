"""Each task's figures are those of an independent implementation, its losses those of the papers."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch.nn import functional

from toolkit.errors import UserError
from train.data.batch import Batch
from train.tasks import TASKS, Task, make_task
from train.tasks.classification import Classification, average_precision
from train.tasks.retrieval import Retrieval, knn_answers, neighbours

sk = pytest.importorskip("sklearn.metrics")
sk_neighbors = pytest.importorskip("sklearn.neighbors")
LABELS = tuple("abcdefg")
RNG = np.random.default_rng(0)


def _batch(labels: torch.Tensor) -> Batch:
    return Batch(torch.zeros(len(labels), 1, 1, 2, 2, 3, dtype=torch.uint8), labels, torch.arange(len(labels)))


def _logits(count: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    truth = RNG.integers(0, len(LABELS), count)
    logits = RNG.standard_normal((count, len(LABELS))).astype(np.float32)
    logits[np.arange(count), truth] += 0.7
    return logits, truth


def test_every_task_keeps_the_protocol() -> None:
    for name in TASKS.keys() - {"detection"}:
        task = make_task(name, LABELS)
        assert isinstance(task, Task)
        outputs, targets = _logits(60)
        assert task.chooses in task.metrics(outputs, targets)
        head = task.head(7)
        assert head(torch.randn(3, 7)).shape == (3, 7)


def test_an_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UserError, match=r"unknown task 'clasification' \(did you mean 'classification'\?\)"):
        make_task("clasification", LABELS)


def test_one_class_figures_are_those_of_scikit_learn() -> None:
    logits, truth = _logits(300)
    found = Classification(LABELS).metrics(logits, truth)
    answers, shares = logits.argmax(1), functional.softmax(torch.from_numpy(logits), 1).numpy()
    assert found["top1"] == pytest.approx((answers == truth).mean())
    assert found["top5"] == pytest.approx(sk.top_k_accuracy_score(truth, logits, k=5))
    assert found["confusion"] == sk.confusion_matrix(truth, answers).tolist()
    assert found["map"] == pytest.approx(sk.average_precision_score(np.eye(7)[truth], shares), abs=1e-6)
    recalls = [entry["recall"] for entry in found["per_class"].values()]
    assert recalls == pytest.approx(sk.recall_score(truth, answers, average=None))
    assert found["ci_low"] < found["top1"] < found["ci_high"]


def test_many_label_figures_are_those_of_scikit_learn() -> None:
    true = (RNG.random((200, 7)) < 0.3).astype(np.float32)
    logits = (RNG.standard_normal((200, 7)) + true).astype(np.float32)
    found = Classification(LABELS, multi_label=True).metrics(logits, true)
    assert found["map"] == pytest.approx(sk.average_precision_score(true, logits), abs=1e-6)
    assert found["f1"] == pytest.approx(sk.f1_score(true, logits > 0, average="micro"))
    recalls = [entry["recall"] for entry in found["per_class"].values()]
    assert recalls == pytest.approx(sk.recall_score(true, logits > 0, average=None))
    assert found["exact"] == pytest.approx(((logits > 0) == true).all(1).mean())


def test_equal_scores_are_one_threshold() -> None:
    for _ in range(20):
        scores = RNG.integers(0, 4, 30).astype(np.float64)
        positive = RNG.random(30) < 0.4
        positive[0] = True
        assert average_precision(scores, positive) == pytest.approx(sk.average_precision_score(positive, scores))


def test_a_class_that_does_not_occur_has_no_figures_and_does_not_count() -> None:
    logits, truth = _logits(50)
    truth[truth == 3] = 2
    found = Classification(LABELS).metrics(logits, truth)
    assert found["per_class"]["d"] == {"clips": 0, "recall": None, "ap": None}
    precisions = [entry["ap"] for entry in found["per_class"].values() if entry["ap"] is not None]
    assert found["map"] == pytest.approx(np.mean(precisions))


def test_soft_labels_of_one_class_cost_what_hard_ones_do() -> None:
    logits, truth = _logits(10)
    task = Classification(LABELS, label_smoothing=0.1)
    outputs, labels = torch.from_numpy(logits), torch.from_numpy(truth)
    hard = task.loss(_batch(labels), outputs)
    assert task.loss(_batch(functional.one_hot(labels, 7).float()), outputs).item() == pytest.approx(hard.item())
    spread = functional.one_hot(labels, 7) * 0.9 + 0.1 / 7  # Szegedy et al. 2016, section 7
    assert -(outputs.log_softmax(1) * spread).sum(1).mean().item() == pytest.approx(hard.item(), rel=1e-5)


def test_many_labels_are_independent_questions() -> None:
    outputs, labels = torch.tensor([[2.0, -1.0]]), torch.tensor([[1.0, 0.0]])
    loss = Classification(("a", "b"), multi_label=True).loss(_batch(labels), outputs)
    assert loss.item() == pytest.approx((np.log1p(np.exp(-2)) + np.log1p(np.exp(-1))) / 2, rel=1e-5)
    certain = Classification(("a", "b"), multi_label=True, label_smoothing=0.2)
    best = torch.tensor([[0.9, 0.1]]).logit().requires_grad_()
    certain.loss(_batch(labels), best).backward()  # type: ignore[no-untyped-call]
    assert best.grad is not None
    assert best.grad.abs().max() < 1e-6


def test_neighbours_vote_as_in_scikit_learn() -> None:
    gallery, queries = RNG.standard_normal((80, 6)), RNG.standard_normal((40, 6))
    known = RNG.integers(0, 3, 80)
    order, cosines = neighbours(queries.astype(np.float32), gallery.astype(np.float32))
    reference = sk_neighbors.KNeighborsClassifier(
        5, metric="cosine", algorithm="brute", weights=lambda distance: 2 - distance
    )
    expected = reference.fit(gallery, known).predict(queries)
    np.testing.assert_array_equal(knn_answers(order, cosines, known, 3, 5), expected)
    assert (np.diff(cosines, axis=1) <= 0).all()


def test_no_clip_finds_itself() -> None:
    x = RNG.standard_normal((12, 4)).astype(np.float32)
    order, _ = neighbours(x, x, leave_out=True)
    assert all(index not in row for index, row in enumerate(order))
    assert order.shape == (12, 11)


def test_retrieval_of_separate_classes_is_perfect_and_of_noise_is_at_chance() -> None:
    truth = np.repeat(np.arange(4), 25)
    apart = (np.eye(8)[truth] + 0.05 * RNG.standard_normal((100, 8))).astype(np.float32)
    perfect = Retrieval(tuple("wxyz")).metrics(apart, truth)
    assert (perfect["knn"], perfect["recall@1"], perfect["map"]) == (1.0, 1.0, pytest.approx(1.0))
    noise = Retrieval(tuple("wxyz")).metrics(RNG.standard_normal((100, 8)).astype(np.float32), truth)
    assert 0.1 < noise["recall@1"] < 0.4
    assert noise["recall@1"] < noise["recall@5"] < noise["recall@10"]


def test_the_mean_average_precision_of_retrieval_is_that_of_scikit_learn() -> None:
    gallery, queries = RNG.standard_normal((50, 6)).astype(np.float32), RNG.standard_normal((20, 6)).astype(np.float32)
    known, truth = (RNG.random((50, 3)) < 0.3).astype(np.float32), (RNG.random((20, 3)) < 0.6).astype(np.float32)
    found = Retrieval(tuple("xyz")).against(gallery, known, queries, truth)
    cosines = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ (
        gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    ).T
    relevant = truth @ known.T > 0
    each = [sk.average_precision_score(r, c) for r, c in zip(relevant, cosines, strict=True) if r.any()]
    assert found["map"] == pytest.approx(np.mean(each), abs=1e-6)
    assert found["asked"] == len(each)
    assert "knn" not in found


def test_the_contrastive_loss_is_that_of_its_paper() -> None:
    x, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 0, 0, 1, 1, 2])
    z = functional.normalize(x, dim=1).numpy().astype(np.float64)
    total = []
    for i in range(5):  # the last one has no fellow
        others = [a for a in range(6) if a != i]
        bottom = sum(np.exp(z[i] @ z[a] / 0.1) for a in others)
        fellows = [p for p in others if labels[p] == labels[i]]
        total.append(-np.mean([np.log(np.exp(z[i] @ z[p] / 0.1) / bottom) for p in fellows]))
    assert Retrieval(tuple("xyz")).loss(_batch(labels), x).item() == pytest.approx(np.mean(total), rel=1e-5)
    lonely = x.clone().requires_grad_()
    loss = Retrieval(tuple("abcdef")).loss(_batch(torch.arange(6)), lonely)
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == 0.0
    assert lonely.grad is not None
    assert torch.isfinite(lonely.grad).all()


@pytest.mark.parametrize("name", ["classification", "retrieval"])
@pytest.mark.parametrize("many", [False, True])
def test_figures_are_pictures_and_are_written_whole(name: str, many: bool, tmp_path: Path) -> None:
    logits, truth = _logits(40)
    targets = np.eye(7, dtype=np.float32)[truth] if many else truth
    settings = {"multi_label": many} if name == "classification" else {}
    paths = make_task(name, LABELS, **settings).figures(tmp_path / "figures", logits, targets)
    assert paths
    assert sorted((tmp_path / "figures").iterdir()) == sorted(paths)
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
