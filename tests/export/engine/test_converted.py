"""Single ops as coremltools saves them: read from the package, their estimates and support are the published ones."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coreflow.export.engine.cost import estimate
from coreflow.export.engine.features import Features, features_of
from coreflow.export.engine.support import support
from coreflow.export.engine.targets import BACKENDS, find_targets
from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.mlpackage import read_program
from tests.export.engine.published import PublishedOp, published_programs

M4 = find_targets("M4/macOS27")[0]
IMAGE = (1, 64, 32, 32)
Build = Callable[[Any, Any], Any]  # the builder and the input


def weight(*shape: int) -> np.ndarray:
    return np.linspace(-1, 1, int(np.prod(shape)), dtype=np.float16).reshape(shape)


# By program of the data: the shape of x, and the op.
OPS: dict[str, tuple[tuple[int, ...], Build]] = {
    "iso/abs": (IMAGE, lambda mb, x: mb.abs(x=x)),
    "iso/add": (IMAGE, lambda mb, x: mb.add(x=x, y=x)),
    "ctx/cumsum_c": (IMAGE, lambda mb, x: mb.cumsum(x=x, axis=1)),
    "ctx/depth_to_space": (IMAGE, lambda mb, x: mb.depth_to_space(x=x, block_size=2)),
    "ctx/elu": (IMAGE, lambda mb, x: mb.elu(x=x, alpha=1.0)),
    "ctx/gather_c": (IMAGE, lambda mb, x: mb.gather(x=x, indices=np.arange(0, 64, 2, dtype=np.uint16), axis=1)),
    "ctx/layer_norm_c": (IMAGE, lambda mb, x: mb.layer_norm(x=x, axes=[1], gamma=weight(64), beta=weight(64))),
    "ctx/max_pool": (IMAGE, lambda mb, x: mb.max_pool(x=x, kernel_sizes=[3, 3], strides=[1, 1], pad_type="same")),
    "ctx/pad_const": (IMAGE, lambda mb, x: mb.pad(x=x, pad=[0, 0, 0, 0, 1, 1, 1, 1], mode="constant", constant_val=np.float16(0))),
    "ctx/reduce_sum_c": (IMAGE, lambda mb, x: mb.reduce_sum(x=x, axes=[1], keep_dims=True)),
    "ctx/sdpa": ((1, 8, 128, 64), lambda mb, x: mb.scaled_dot_product_attention(query=x, key=x, value=x)),
    "ctx/softmax_c": (IMAGE, lambda mb, x: mb.softmax(x=x, axis=1)),
    "ctx/transpose_cw": (IMAGE, lambda mb, x: mb.transpose(x=x, perm=[0, 3, 2, 1])),
    "ctx/transpose_nc": ((8, 64, 16, 16), lambda mb, x: mb.transpose(x=x, perm=[1, 0, 2, 3])),
    "ctx/upsample_bilinear": (
        IMAGE,
        lambda mb, x: mb.upsample_bilinear(x=x, scale_factor_height=2.0, scale_factor_width=2.0, align_corners=False),
    ),
    "iso/conv3x3_dw": (IMAGE, lambda mb, x: mb.conv(x=x, weight=weight(64, 1, 3, 3), pad_type="same", groups=64)),
    "iso/conv3x3_d2": (IMAGE, lambda mb, x: mb.conv(x=x, weight=weight(64, 64, 3, 3), pad_type="same", dilations=[2, 2])),
    "iso/conv_k17": (IMAGE, lambda mb, x: mb.conv(x=x, weight=weight(64, 64, 17, 17), pad_type="same")),
    "iso/conv_transpose_k3s2": (
        IMAGE,
        lambda mb, x: mb.conv_transpose(x=x, weight=weight(64, 64, 3, 3), strides=[2, 2], pad=[1, 0, 1, 0], pad_type="custom"),
    ),
    "iso/matmul_const": ((1, 128, 256), lambda mb, x: mb.matmul(x=x, y=weight(256, 512))),
    "iso/mul": (IMAGE, lambda mb, x: mb.mul(x=x, y=x)),
    "iso/split_c": (IMAGE, lambda mb, x: mb.split(x=x, num_splits=2, axis=1)[0]),
    "iso/stack": (IMAGE, lambda mb, x: mb.stack(values=(x, x), axis=1)),
    "iso/tile": (IMAGE, lambda mb, x: mb.tile(x=x, reps=[1, 2, 1, 2])),
    "iso/topk_w": (IMAGE, lambda mb, x: mb.topk(x=x, k=4, axis=-1)[0]),
}
# The data leaves out scalar constants of some ops, which a package holds.
SCALARS = 1.5e-4


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Features]:
    ct = quiet_coremltools()
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    folder = tmp_path_factory.mktemp("converted")

    def convert(name: str) -> Features:
        shape, build = OPS[name]

        @mb.program(  # type: ignore[untyped-decorator]
            input_specs=[mb.TensorSpec(shape, types.fp16)], opset_version=ct.target.iOS18
        )
        def program(x: Any) -> Any:
            return build(mb, x)

        package: Path = folder / f"{name.replace('/', '-')}.mlpackage"
        ct.convert(program, minimum_deployment_target=ct.target.iOS18, skip_model_load=True).save(str(package))
        ((_, features),) = (
            (op, features) for op, features in features_of(read_program(package).function()[0]) if op.type in _types_of(name)
        )
        return features

    return convert


def _types_of(name: str) -> set[str]:
    return {op.features.type for op in _tested(name)}


def _tested(name: str) -> Iterator[PublishedOp]:
    """The op under test: the only one of its type, or the first of a program of several."""
    op_type = {"iso/add": "add", "ctx/gather_c": "gather"}.get(name)
    (program,) = (program for program in published_programs() if program.name == name)
    ops = [op for op in program.ops if op_type in (None, op.features.type)]
    rare = [op for op in ops if op.features.type not in ("relu", "cast") and (op.features.type != "conv" or "conv" in name)]
    yield rare[0]


@pytest.mark.sampled(8)
@pytest.mark.parametrize("name", OPS)
def test_a_saved_op_has_the_published_estimates_and_support(name: str, converted: Callable[[str], Features]) -> None:
    features = converted(name)
    (published,) = _tested(name)
    assert features.type == published.features.type
    for backend in BACKENDS:
        if backend in published.ms:
            assert estimate(features, M4).ms[backend] == pytest.approx(published.ms[backend], rel=SCALARS)
    assert support(features, M4).engine == ("ane" in published.backends)
