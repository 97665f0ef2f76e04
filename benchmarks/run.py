"""``make bench``: the stages of the demo bundle, then the engines on four models. Results go to benchmarks/results/.

Machines are noisy and differ: the figures to keep are the ratios.
"""

from benchmarks import engines, stages


def main() -> int:
    """Run both; the first exit code that is not 0 counts."""
    return max(stages.main(), engines.main())


if __name__ == "__main__":
    raise SystemExit(main())
