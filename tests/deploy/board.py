"""The conformance points on a board that has one runtime and no pytest: run as a script with the bundle's path.

Prints one line of JSON with the worst differences of every artefact that works there, and what is opened by default.
"""

import json
import sys
from pathlib import Path

import numpy as np

from deploy.bench import bench
from deploy.runtimes import open_session, working
from deploy.verify import compare, replay
from toolkit.bundle import open_bundle


def main() -> None:
    """Parity, reset, interleaving, batch, drift and speed of each artefact."""
    bundle = open_bundle(Path(sys.argv[1]))
    golden = bundle.golden()
    told: dict[str, dict[str, float]] = {}
    for key in working(bundle)[0]:
        session, other = open_session(bundle, key, threads=1), open_session(bundle, key, threads=1)
        first = replay(session, golden.frames)
        other.step(golden.frames[-1:])
        again = replay(session, golden.frames)
        pair = open_session(bundle, key, threads=1, batch=2)
        both = [pair.step(np.stack([a, b])) for a, b in zip(golden.frames, golden.frames[::-1], strict=True)]
        long = np.concatenate([golden.frames] * (1000 // len(golden.frames)))
        drifted, fresh = replay(session, long)[-20:], replay(other, long[-60:])[-20:]
        result = compare(key, first, golden.logits)
        told[key] = {
            **result.metrics,
            "reset": float(np.abs(again - first).max()),
            "batch": float(np.abs(np.stack(both)[:, 0] - first).max()),
            "drift": float(np.abs(drifted - fresh).max()),
            "p50_ms": bench({key: session}, 100)[key].p50_ms,
        }
    placement = open_session(bundle).placement()
    print(json.dumps({"targets": told, "default": f"{placement.runtime}-{placement.precision}",
                      "library": placement.detail["library"]}))  # fmt: skip


if __name__ == "__main__":
    main()
