"""Small packages with what a package can hold, saved by coremltools."""

import gc
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from coreflow.export.package.coremltools_quiet import quiet_coremltools


def save(folder: Path, name: str, program: Any, **options: Any) -> Path:
    ct = quiet_coremltools()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ct.convert(program, convert_to="mlprogram", skip_model_load=True, pass_pipeline=ct.PassPipeline.EMPTY, **options)
        model.save(str(folder / f"{name}.mlpackage"))
        del model
        gc.collect()
    return folder / f"{name}.mlpackage"


@pytest.fixture(scope="session")
def small_packages(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Small packages with what a package can hold: weights in a file, compressed constants, blocks, a list, a state, a picture."""
    ct = quiet_coremltools()
    from coremltools.converters.mil.mil import Builder, types

    def weights(x: Any) -> Any:
        dense = np.arange(64 * 48, dtype=np.float16).reshape(64, 48) / 1024
        small = Builder.constexpr_affine_dequantize(
            quantized_data=np.arange(64 * 64).astype(np.uint8).reshape(64, 64), zero_point=np.uint8(3), scale=np.float16(0.1), axis=0
        )
        table = Builder.constexpr_lut_to_dense(
            indices=np.arange(512).astype(np.uint8), lut=np.linspace(-1, 1, 4).astype(np.float16), shape=np.array([32, 64], np.uint32)
        )
        return Builder.linear(x=Builder.linear(x=Builder.linear(x=x, weight=dense), weight=small), weight=table)

    def blocks(x: Any, memory: Any) -> Any:
        _, items = Builder.while_loop(
            _cond=lambda i, ls: Builder.less(x=i, y=3),
            _body=lambda i, ls: (Builder.add(x=i, y=1), Builder.list_write(ls=ls, index=i, value=x)),
            loop_vars=(0, Builder.make_list(init_length=2, elem_shape=(3,), dtype="fp16")),
        )
        chosen = Builder.cond(
            pred=Builder.greater(x=Builder.reduce_sum(x=x), y=np.float16(0)),
            _true_fn=lambda: Builder.list_read(ls=items, index=0),
            _false_fn=lambda: Builder.read_state(input=memory),
        )
        return Builder.coreml_update_state(state=memory, value=chosen)

    def picture(x: Any) -> Any:
        return Builder.softmax(x=Builder.reduce_mean(x=x, axes=[2, 3]), axis=-1)

    def four_bits(x: Any) -> Any:
        indices = np.arange(32 * 64).reshape(32, 64) % 16
        table = np.linspace(-1, 1, 16).astype(np.float16).reshape(1, 1, 16, 1)
        return Builder.linear(x=x, weight=Builder.constexpr_lut_to_dense(indices=indices.astype(types.np_uint4_dtype), lut=table))

    folder = tmp_path_factory.mktemp("packages")
    target = ct.target
    packages = (
        save(
            folder,
            "weights",
            Builder.program(input_specs=[Builder.TensorSpec((1, 48), dtype=types.fp16)], opset_version=ct.target.iOS16)(weights),
            minimum_deployment_target=target.iOS16,
        ),
        save(
            folder,
            "blocks",
            Builder.program(
                input_specs=[Builder.TensorSpec((3,), dtype=types.fp16), Builder.StateTensorSpec((3,), dtype=types.fp16)],
                opset_version=ct.target.iOS18,
            )(blocks),
            minimum_deployment_target=target.iOS18,
        ),
        save(
            folder,
            "picture",
            Builder.program(input_specs=[Builder.TensorSpec((1, 3, 8, 8))], opset_version=ct.target.iOS17)(picture),
            minimum_deployment_target=target.iOS17,
            inputs=[ct.ImageType(name="x", shape=(1, 3, 8, 8))],
            classifier_config=ct.ClassifierConfig(["red", "green", "blue"]),
        ),
        save(
            folder,
            "four bits",
            Builder.program(input_specs=[Builder.TensorSpec((1, 64), dtype=types.fp16)], opset_version=ct.target.iOS18)(four_bits),
            minimum_deployment_target=target.iOS18,
        ),
    )
    return {path.stem: path for path in packages}
