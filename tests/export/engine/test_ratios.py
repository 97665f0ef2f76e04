"""Tables known by the cost column of plans: ratios to the time of the bytes that an op moves, as published for M4 Pro and M5 Max."""

import pytest

from coreflow.export.engine.cost import estimate
from coreflow.export.engine.features import Features, Tensor
from coreflow.export.engine.targets import Backend, Target, find_targets

M4_PRO, M5_MAX = find_targets("M4Pro/macOS26.5")[0], find_targets("M5Max/macOS26.6")[0]
X = Tensor((16, 128, 768), "float16")
SCALAR = Tensor((), "float16")
MASK = Tensor((16, 12, 128, 128), "float16")
QUERIES, KEYS = Tensor((16, 12, 128, 64), "float16"), Tensor((16, 12, 64, 128), "float16")
MATMUL = Features(type="matmul", inputs=(QUERIES, KEYS), outputs=(MASK,), contraction=64)
ADD, MUL = Features(type="add", inputs=(X, X), outputs=(X,)), Features(type="mul", inputs=(X,), constants=(SCALAR,), outputs=(X,))
ADD_CONSTANT = Features(type="add", inputs=(X,), constants=(Tensor((1, 128, 768), "float16"),), outputs=(X,))
RELU = Features(type="relu", inputs=(X,), outputs=(X,))
TRANSPOSE = Features(type="transpose", inputs=(X,), outputs=(X,), permutation=(0, 2, 1))
POOL = Features(type="max_pool", inputs=(X,), outputs=(X,), kernel=(1,))
LOOK_UP = Features(
    type="gather", inputs=(Tensor((16, 128), "int16"),), constants=(Tensor((30522, 768), "float16"),), outputs=(X,), run_time_index=True
)
INTEGER = Tensor((16, 128), "int32")
INTEGERS = Features(type="add", inputs=(INTEGER,), constants=(Tensor((), "int32"),), outputs=(INTEGER,))
CAST = Features(type="cast", inputs=(Tensor((16, 128), "int32"),), outputs=(Tensor((16, 128), "int16"),))


def conv(inputs: int, outputs: int, size: int, kernel: int = 1, groups: int = 1) -> Features:
    """A convolution of a batch of 16 with a bias that keeps the height and width."""
    return Features(
        type="conv",
        inputs=(Tensor((16, inputs, size, size), "float16"),),
        constants=(Tensor((outputs, inputs // groups, kernel, kernel), "float16"), Tensor((outputs,), "float16")),
        outputs=(Tensor((16, outputs, size, size), "float16"),),
        kernel=(kernel, kernel),
        groups=groups,
        dilations=(1, 1),
        has_bias=True,
    )


def linear(length: int, width: int) -> Features:
    return Features(
        type="linear",
        inputs=(Tensor((16, 128, length), "float16"),),
        constants=(Tensor((width, length), "float16"), Tensor((width,), "float16")),
        outputs=(Tensor((16, 128, width), "float16"),),
        has_bias=True,
    )


def byte_times(features: Features, target: Target, backend: Backend = "ane") -> float:
    """The estimate in bytes at the engine's bandwidth."""
    return estimate(features, target).ms[backend] * 1e-3 * target.bandwidth["ane"] * 2**30


RESULTS = 16 * 128 * 768


@pytest.mark.parametrize(
    ("features", "per_result"),
    [(ADD, 11.00), (ADD_CONSTANT, 5.84), (MUL, 3.65), (RELU, 2.92), (TRANSPOSE, 10.74), (POOL, 4.0)],
    ids=lambda value: getattr(value, "type", None),
)
def test_m4_pro_bytes_a_result(features: Features, per_result: float) -> None:
    assert byte_times(features, M4_PRO) / RESULTS == pytest.approx(per_result, rel=2e-3)


@pytest.mark.parametrize("features", [ADD, MUL, RELU, POOL], ids=lambda value: value.type)
def test_m5_max_bytes_a_result(features: Features) -> None:
    assert byte_times(features, M5_MAX) / RESULTS == pytest.approx(2.1111, rel=2e-5)


@pytest.mark.parametrize(("length", "width"), [(768, 768), (768, 3072), (3072, 768)])
def test_linear_counts_2_m_k_k(length: int, width: int) -> None:
    for target, rate in ((M4_PRO, 181.3), (M5_MAX, 113.21)):
        assert 2 * 16 * 128 * length**2 / byte_times(linear(length, width), target) == pytest.approx(rate, rel=3e-4)


def test_matmul_follows_its_bytes_on_m4_pro_and_its_work_on_m5_max() -> None:
    assert byte_times(MATMUL, M4_PRO) == pytest.approx(MATMUL.bytes)
    assert 2 * MASK.elements * 64 / byte_times(MATMUL, M5_MAX) == pytest.approx(113.21, rel=2e-5)


# By work a byte; between 85 and 102 the number of outputs decides, as far as two of them tell.
@pytest.mark.parametrize(
    ("features", "rate"),
    [
        (conv(32, 32, 56, 3, groups=32), 4.1),
        (conv(64, 256, 56), 43.3),
        (conv(256, 64, 56), 43.3),
        (conv(256, 128, 56), 94.1),
        (conv(512, 128, 28), 94.1),
        (conv(128, 512, 28), 43.3),
        (conv(64, 64, 56, 3), 94.1),
        (conv(256, 1024, 14), 94.1),
    ],
    ids=lambda value: "-".join(map(str, value.constants[0].shape)) if isinstance(value, Features) else None,
)
def test_convolutions_of_m4_pro_have_three_rates(features: Features, rate: float) -> None:
    terms = 2 * features.constants[0].shape[1] * features.kernel[0] ** 2 + 1
    assert terms * features.outputs[0].elements / byte_times(features, M4_PRO) == pytest.approx(rate, rel=3e-3)
    assert terms * features.outputs[0].elements / byte_times(features, M5_MAX) == pytest.approx(113.21, rel=2e-5)


def test_the_cpu_s_ratios() -> None:
    assert byte_times(CAST, M4_PRO, "bnns") / CAST.bytes == pytest.approx(1.2, rel=1e-5)
    assert byte_times(LOOK_UP, M4_PRO, "bnns") / LOOK_UP.bytes == pytest.approx(2.974, rel=2e-3)
    assert byte_times(INTEGERS, M4_PRO, "bnns") / INTEGERS.bytes == pytest.approx(0.894, rel=2e-3)
    for features in (CAST, LOOK_UP):
        assert byte_times(features, M5_MAX, "bnns") / features.bytes == pytest.approx(2.625, rel=2e-5)
