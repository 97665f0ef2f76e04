"""Upper bounds of the largest singular value of a matrix, as far as the work allowed lasts."""

from dataclasses import dataclass

import numpy as np

from coreflow.models.arrays import Floats

_SQUARINGS = 3


@dataclass(slots=True)
class Work:
    """Multiply-adds that may still be spent; without any, bounds are coarser and as true.

    >>> Work(2e10).spectral_norm(np.eye(3))
    1.0
    """

    left: float

    def affords(self, rows: int, columns: int, times: int = 1) -> bool:
        """Whether there is work left for so many matrices of this shape."""
        return self._cost(rows, columns) * times <= self.left

    def _cost(self, rows: int, columns: int) -> float:
        side = float(min(rows, columns))
        return side * side * (max(rows, columns) / 2 + _SQUARINGS * side)

    def spectral_norm(self, matrix: Floats) -> float:
        """An upper bound of the largest singular value.

        With G = M M^T of the smaller side, its largest eigenvalue is at most |G^8|_F^(1/8), which for n equal eigenvalues is n^(1/16) too
        large. Without work left: the Frobenius norm.
        """
        frobenius = float(np.sqrt(np.square(matrix).sum()))
        rows, columns = matrix.shape
        side = min(rows, columns)
        if side <= 1 or not self.affords(rows, columns):
            return frobenius
        self.left -= self._cost(rows, columns)
        if not np.isfinite(frobenius) or frobenius == 0:
            return frobenius
        scaled = matrix / frobenius  # eigenvalues of G up to 1
        gram = scaled @ scaled.T if rows <= columns else scaled.T @ scaled
        exponent, power = 1, gram
        for _ in range(_SQUARINGS):
            power = power @ power
            exponent *= 2
        largest = float(np.sqrt(np.square(power).sum())) ** (1 / exponent)
        return frobenius * min(1.0, np.sqrt(largest) * (1 + 1e-9))  # more than rounding changes
