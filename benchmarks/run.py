"""``make bench``: the stages of the demo bundle, four models, a full report, a placement; results go to benchmarks/results/.

Machines are noisy and differ: the figures to keep are the ratios.
"""

from benchmarks import engine_numerics, engines, lints, placements, reports, stages


def main() -> int:
    """Run all; the first exit code that is not 0 counts."""
    return max([stages.main(), engines.main(), reports.main(), placements.main(), lints.main(), engine_numerics.main()])


if __name__ == "__main__":
    raise SystemExit(main())
