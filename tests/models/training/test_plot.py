"""The picture of the loss curve."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from coreflow.models.training.plot import plot_curve, smooth


def make_curve(count: int) -> tuple[list[int], dict[str, list[float]]]:
    steps = list(range(1, count + 1))
    return steps, {"text": [6 / step for step in steps], "energy": [1 + 1 / step for step in steps]}


def test_curve_becomes_a_png_of_its_own_even_with_one_step(tmp_path: Path) -> None:
    pictures = []
    for count in (1, 300):
        plot_curve(*make_curve(count), tmp_path / "loss.png")
        pictures.append((tmp_path / "loss.png").read_bytes())
        assert pictures[-1].startswith(b"\x89PNG\r\n")
    assert pictures[0] != pictures[1]
    assert [path.name for path in tmp_path.iterdir()] == ["loss.png"]


def test_smoothing_is_the_mean_of_the_last_values() -> None:
    values = np.random.default_rng(0).normal(size=20)
    expected = [values[max(0, at - 4) : at + 1].mean() for at in range(20)]
    np.testing.assert_allclose(smooth(values, 5), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(smooth(values, 1), values, rtol=1e-9, atol=1e-12)


def test_pyplot_is_not_loaded() -> None:
    program = "import sys, coreflow.models.training.plot; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
