"""The training loop; whole runs, resumed ones among them, are tests of a family."""

from coreflow.models.training.loop import WARM_UP_STEPS, rate_factor


def test_learning_rate_rises_then_falls_to_almost_nothing() -> None:
    factors = [rate_factor(step, 1000) for step in range(1000)]
    peak = factors.index(max(factors))
    assert peak == WARM_UP_STEPS - 1
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert 0 < factors[-1] < 2e-3
