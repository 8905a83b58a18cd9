"""Fight or not, on 237 surveillance clips in four folds that share no source video.

    python benchmarks/surv_fight.py [--data ../shared/data/surv_fight] [--peer ../shared/peers/movinet_a0_stream]

Student: ImageNet MobileNetV2 up to block 12, frozen, motion readout, logistic regression. The only choice made
from data, the regularisation strength, is made inside the three training folds. Teacher: the mean of the logits of
three such probes at three depths, in float. Exported: the student's int8 LiteRT file, calibrated on
16 streams of the training folds drawn by the seed, run by its adapter on the test fold. The fit is convex, so the
seed changes the calibration only. Peer: the same logistic regression on the features of all layers of MoViNet-A0
stream; every other row is compared with it clip by clip. The design itself was found by looking at these folds: read
0.01-0.02 of the mean as optimism. Features and bundles are cached in --work; a run that was cut goes on.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import save
from benchmarks.peer import peer_calls, peer_features
from deploy.bench import bench_calls
from deploy.evaluate import evaluate, mcnemar
from deploy.export import export_bundle
from deploy.export.step import flat_step
from deploy.runtimes import RUNTIMES, open_session
from toolkit.bundle import Bundle, open_bundle
from toolkit.files import write_bytes
from toolkit.preprocess import Preprocess
from toolkit.progress import track
from toolkit.recipe import StudentConfig
from toolkit.video import read_pictures
from train.models.mobilenet_v2 import IMAGENET, MEAN, STD, load_imagenet
from train.models.student import StreamStudent, build_student
from train.probe import Probe, choose_strength, clip_means, fit_probe, install

LABELS = ("fight", "noFight")
PEER = "peer (MoViNet-A0 stream, probe on all layers)"
SEEDS = (0, 1, 2)
STUDENT = (13, (160, 224))  # residual blocks kept, picture (H, W)
TEACHER = ((10, (160, 224)), STUDENT, (16, (160, 224)))


def view(blocks: int, size: tuple[int, int]) -> tuple[StreamStudent, Preprocess]:
    """A frozen backbone with an untrained motion readout, and its preprocessing."""
    config = StudentConfig(
        width=1.0, temporal="none", readout="motion", blocks=blocks, dropout=0.0, pretrained=IMAGENET
    )
    student = build_student(config, len(LABELS), (3, *size), 16)
    load_imagenet(student)
    return student.eval(), Preprocess(size=size, fit="stretch", fps=10, mean=MEAN, std=STD)


def features(rows: list[dict[str, str]], data: Path, blocks: int, size: tuple[int, int], work: Path) -> np.ndarray:
    """Mean features of every clip (N, G, C), cached."""
    file = work / f"features-{blocks}-{size[0]}x{size[1]}.npy"
    if not file.is_file():
        student, preprocess = view(blocks, size)
        # Folded batch norms and channels last: the same features in half the time.
        folded = flat_step(student).model.to(memory_format=torch.channels_last)
        found = [clip_means(folded, read_pictures(data / row["path"], preprocess), preprocess)
                 for row in track(rows, f"features {blocks} {size}")]  # fmt: skip
        np.save(work / "partial.npy", np.stack(found))
        write_bytes(file, (work / "partial.npy").read_bytes())
    return np.asarray(np.load(file))


def fitted(feats: np.ndarray, labels: np.ndarray, folds: np.ndarray, fold: int) -> tuple[Probe, float]:
    """The probe of all folds but one, its strength chosen by leaving out one of those at a time."""
    training = folds != fold
    strength = choose_strength(feats[training], labels[training], list(folds[training]), 2)
    return fit_probe(feats[training], labels[training], 2, strength), strength


def exported(rows: list[dict[str, str]], data: Path, feats: np.ndarray, labels: np.ndarray, folds: np.ndarray,
             fold: int, seed: int, work: Path) -> Bundle:  # fmt: skip
    """The student trained without ``fold`` (-1: on every clip), as a bundle."""
    path = work / (f"fold{fold}-seed{seed}.vidon" if fold >= 0 else "fight.vidon")
    if path.is_dir():
        return open_bundle(path)
    training = folds != fold
    probe, strength = fitted(feats, labels, folds, fold)
    student, preprocess = view(*STUDENT)
    install(student, probe)
    chosen = np.random.default_rng(seed).choice(np.flatnonzero(training), 17, replace=False)
    streams = [preprocess.normalise(read_pictures(data / rows[i]["path"], preprocess, 24)) for i in chosen]
    return export_bundle(
        student, path=path, name="fight", labels=LABELS, preprocess=preprocess, rollouts=streams[:16],
        golden_frames=streams[16], runtimes=("litert",) if fold >= 0 else tuple(RUNTIMES),
        precisions=("fp32", "int8"),
        lineage={"held_out_fold": fold, "seed": seed, "strength": strength},
    )  # fmt: skip


def latency(bundle: Bundle, peer: Path) -> dict[str, Any]:
    """Student and peer in turns, one thread each."""
    calls: dict[str, Any] = peer_calls(peer) if peer.is_dir() else {}
    for key in ("litert-int8", "litert-fp32"):
        session = open_session(bundle, key, threads=1)
        frame = np.zeros((1, *session.contract.frame), np.float32)
        calls[f"student {key}"] = lambda session=session, frame=frame: session.step(frame)
    return {name: value.as_dict() for name, value in bench_calls(calls, 300, 20, "latency").items()}


def main() -> None:
    """Run, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    root = Path(__file__).resolve().parents[2] / "shared"
    parser.add_argument("--data", type=Path, default=root / "data" / "surv_fight")
    parser.add_argument("--peer", type=Path, default=root / "peers" / "movinet_a0_stream")
    parser.add_argument("--work", type=Path, default=Path("runs/surv_fight"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    with (args.data / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    labels = np.array([LABELS.index(row["label"]) for row in rows])
    folds = np.array([int(row["fold"]) for row in rows])
    views = [features(rows, args.data, *v, args.work) for v in TEACHER]
    own = views[TEACHER.index(STUDENT)]

    def probed(feats: np.ndarray) -> np.ndarray:
        """Held-out logits (N, K), each fold's strength chosen inside the others."""
        logits = np.zeros((len(rows), 2))
        for fold in range(4):
            logits[folds == fold] = fitted(feats, labels, folds, fold)[0](feats[folds == fold])
        return logits

    def right(views: list[np.ndarray]) -> list[bool]:
        return [bool(x) for x in np.mean([probed(v) for v in views], axis=0).argmax(1) == labels]

    correct: dict[str, list[list[bool]]] = {}
    if args.peer.is_dir():
        layers = peer_features(rows, args.data, args.peer, args.work)
        correct[PEER] = [right([np.concatenate(layers, 1)[:, None]])]
    correct |= {
        "teacher (three float probes)": [right(views)],
        "student, float": [right([own])],
        "student, exported int8": [],
    }
    for seed in SEEDS:
        answers = np.zeros(len(rows), bool)
        for fold in range(4):
            bundle = exported(rows, args.data, own, labels, folds, fold, seed, args.work)
            held = np.flatnonzero(folds == fold)
            session = open_session(bundle, "litert-int8")
            items = [(args.data / rows[i]["path"], rows[i]["label"]) for i in held]
            answers[held] = evaluate(
                session, items, LABELS, bundle.manifest.preprocess, f"fold {fold} seed {seed}"
            ).correct
            session.close()
        correct["student, exported int8"].append([bool(a) for a in answers])
    times = latency(bundle, args.peer)
    whole = exported(rows, args.data, own, labels, folds, -1, 0, args.work)
    print(
        f"trained on every clip, for clips from elsewhere:  vidon evaluate {whole.root} -a litert-int8 --data clips.csv"
    )
    table, data = [], {}
    reference = correct.get(PEER, [None])[0]
    for name, runs in correct.items():
        means = [[float(np.mean(np.array(run)[folds == fold])) for fold in range(4)] for run in runs]
        mean = float(np.mean(means))
        spread = float(np.std([np.mean(m) for m in means]))
        p = None if reference is None or name == PEER else [mcnemar(run, reference) for run in runs]
        by_fold = [f"{np.mean([m[f] for m in means]):.3f}" for f in range(4)]
        against_peer = "" if p is None else ", ".join(f"{x:.3f}" for x in p)
        table.append(
            [name, *by_fold, f"**{mean:.3f}**", f"{spread:.3f}" if len(runs) > 1 else "convex fit", against_peer]
        )
        data[name] = {"folds": means, "mean": mean, "spread": spread, "mcnemar_vs_peer": p,
                      "correct": [[int(x) for x in run] for run in runs]}  # fmt: skip
    step = times["student litert-int8"]["p50_ms"]
    against = {n: v["p50_ms"] / step for n, v in times.items() if n.startswith("MoViNet")}
    ratios = ", ".join(f"{value:.1f}x faster than {name}" for name, value in against.items())
    caption = f"Mean over four folds, {len(SEEDS)} seeds. One int8 step takes {step:.2f} ms on one thread: {ratios}."
    columns = [
        "",
        "fold 0",
        "fold 1",
        "fold 2",
        "fold 3",
        "mean",
        "spread over seeds",
        "McNemar p against the peer",
    ]
    path = save("surv_fight", caption, columns, table, {"accuracy": data, "latency_one_thread": times})
    print(json.dumps({n: d["mean"] for n, d in data.items()}, indent=1), caption, path, sep="\n")


if __name__ == "__main__":
    main()
