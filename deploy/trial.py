"""One target tried in a process of its own, so that its memory and load time are its own.

    python -P -m deploy.trial BUNDLE KEY [--threads N] [--form FORM]

Prints one line of JSON: milliseconds to open and to answer first, peak memory, agreement with the golden steps; or
``{"error": "..."}`` if it does not work here.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from deploy.bench import peak_rss_mib
from deploy.runtimes import Options, open_session
from deploy.verify import compare, replay
from toolkit.bundle import Bundle, open_bundle
from toolkit.errors import VidonError

__all__ = ["try_alone", "try_target"]


def try_target(bundle: Bundle, key: str, options: Options) -> dict[str, Any]:
    """Open, step and compare in this process; imports count as loading, as they do on a board that starts."""
    begin_ns = time.perf_counter_ns()
    session = open_session(bundle, key, options=options)
    opened_ns = time.perf_counter_ns()
    golden = bundle.golden()
    session.step(golden.frames[:1])
    first_ns = time.perf_counter_ns()
    result = compare(key, replay(session, golden.frames), golden.logits, bundle.manifest.contract)
    told = session.placement().model_dump()
    session.close()
    return {"load_ms": (opened_ns - begin_ns) / 1e6, "first_step_ms": (first_ns - opened_ns) / 1e6,
            "peak_rss_mib": peak_rss_mib(), "placement": told, **result.metrics}  # fmt: skip


def try_alone(bundle: Bundle, key: str, options: Options, timeout_s: float = 300) -> dict[str, Any]:
    """:func:`try_target` in a child process; a crash there is an error here, not a crash."""
    command = [sys.executable, "-P", "-m", "deploy.trial", str(bundle.root), key]
    command += ["--threads", str(options.threads)] if options.threads else []
    command += ["--form", options.form] if options.form else []
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {timeout_s:.0f} s"}
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"error": f"the process ended early: {last}"}
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def main() -> None:
    """Parse, try, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("key")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--form")
    args = parser.parse_args()
    try:
        options = Options(threads=args.threads, form=args.form)
        print(json.dumps(try_target(open_bundle(args.bundle, check=False), args.key, options)))
    except VidonError as error:
        print(json.dumps({"error": str(error)}))


if __name__ == "__main__":
    main()
