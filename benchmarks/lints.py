"""``coreflow lint`` on a package of 3 000 ops, as a process of its own: seconds and memory, against the limits of 5 s and 1 GB."""

import json
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import record
from benchmarks.placements import MOST_BYTES, MOST_SECONDS, OPS, peak_bytes, run_without_torch, write_package

_ENDED = (0, 1)  # exit codes of a lint that came to its end


def main() -> int:
    """Time it, print the figures, and write them; 1 where a limit is exceeded or torch was imported."""
    with tempfile.TemporaryDirectory() as folder:
        package = write_package(Path(folder) / "chain.mlpackage", OPS)
        completed, seconds = run_without_torch(["lint", str(package), "--json"])
    if completed.returncode not in _ENDED or completed.stderr:
        print(completed.stderr, file=sys.stderr)
        return 1
    findings, peak = len(json.loads(completed.stdout)), peak_bytes()
    print(f"coreflow lint, {OPS} ops, {findings} findings: {seconds:.2f} s, {peak / 1e6:.0f} MB")
    record("lint", ("coreflow", "coremltools"), ops=OPS, findings=findings, seconds=seconds, peak_bytes=peak)
    return int(seconds > MOST_SECONDS or peak > MOST_BYTES)


if __name__ == "__main__":
    raise SystemExit(main())
