"""Small packages, saved by coremltools itself."""

import gc
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from coreflow.export.package.coremltools_quiet import quiet_coremltools


class Small(nn.Module):
    """Ids and a mask to probabilities and the best class: one of everything that our stages are made of."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(100, 32)
        self.inner = nn.Linear(32, 64)
        self.mix = nn.Conv2d(64, 48, 1)
        self.norm = nn.LayerNorm(48)
        self.outer = nn.Linear(48, 10)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = nn.functional.gelu(self.inner(self.embedding(ids)))
        x = self.mix(x.transpose(1, 2).unsqueeze(2)).squeeze(2).transpose(1, 2)
        x = self.norm(x) * mask.unsqueeze(-1)
        return torch.softmax(self.outer(x), -1), x.argmax(-1)


@pytest.fixture(scope="session")
def save(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``save(source, **options of ct.convert)``: a MIL program or a traced module, converted to fp16 and saved."""
    ct = quiet_coremltools()

    def run(source: Any, *, metadata: dict[str, str] | None = None, **options: Any) -> Path:
        path = tmp_path_factory.mktemp("package") / "model.mlpackage"
        with warnings.catch_warnings():
            # The converter's own deprecations, and its temporary folder that is left to the garbage collector.
            warnings.simplefilter("ignore")
            model = ct.convert(
                source,
                convert_to="mlprogram",
                skip_model_load=True,
                **{"minimum_deployment_target": ct.target.iOS18, "compute_precision": ct.precision.FLOAT16, **options},
            )
            model.user_defined_metadata.update(metadata or {})
            model.save(str(path))
            del model
            gc.collect()
        return path

    return run


@pytest.fixture(scope="session")
def small() -> Small:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="session")
def small_package(save: Callable[..., Path], small: Small) -> Path:
    ct = quiet_coremltools()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit.trace is deprecated; the converter's first choice nevertheless
        traced = torch.jit.trace(small, (torch.zeros(1, 16, dtype=torch.int32), torch.ones(1, 16)), check_trace=False)
    return save(
        traced,
        inputs=[
            ct.TensorType(name="ids", shape=(1, 16), dtype=np.int32),
            ct.TensorType(name="mask", shape=(1, 16), dtype=np.float16),
        ],
        outputs=[ct.TensorType(name="probabilities", dtype=np.float16), ct.TensorType(name="best")],
        minimum_deployment_target=ct.target.iOS17,
        metadata={"coreflow.bounds": '{"ids": [0, 99], "mask": [0, 1]}'},
    )


@pytest.fixture(scope="session")
def counting_package(save: Callable[..., Path]) -> Path:
    """A state of two numbers to which every prediction adds x; twice the state comes out."""
    ct = quiet_coremltools()
    from coremltools.converters.mil.mil import Builder, types

    def program(x: Any, total: Any) -> Any:
        current = Builder.read_state(input=total)
        return Builder.mul(x=Builder.coreml_update_state(state=total, value=Builder.add(x=current, y=x)), y=np.float16(2))

    return save(
        Builder.program(
            input_specs=[Builder.TensorSpec((2,), dtype=types.fp16), Builder.StateTensorSpec((2,), dtype=types.fp16)],
            opset_version=ct.target.iOS18,
        )(program),
        pass_pipeline=ct.PassPipeline.EMPTY,
    )


@pytest.fixture(scope="session")
def classifier_package(save: Callable[..., Path]) -> Path:
    """Softmax of the three mean colours of a BGR picture, with labels."""
    ct = quiet_coremltools()
    from coremltools.converters.mil.mil import Builder, types

    def program(picture: Any) -> Any:
        return Builder.softmax(x=Builder.reduce_mean(x=picture, axes=[2, 3]), axis=-1)

    return save(
        Builder.program(input_specs=[Builder.TensorSpec((1, 3, 2, 4), dtype=types.fp32)], opset_version=ct.target.iOS16)(program),
        inputs=[ct.ImageType(name="picture", shape=(1, 3, 2, 4), color_layout=ct.colorlayout.BGR, scale=0.1)],
        classifier_config=ct.ClassifierConfig(["blue", "green", "red"]),
        minimum_deployment_target=ct.target.iOS16,
    )


@pytest.fixture(scope="session")
def branching_package(save: Callable[..., Path]) -> Path:
    """2 b + 1 for a positive a, else -b: control flow, which only a prediction decides."""
    from coremltools.converters.mil.mil import Builder, types

    def program(a: Any, b: Any) -> Any:
        positive = Builder.squeeze(x=Builder.greater(x=a, y=0.0))
        doubled = Builder.mul(x=b, y=2.0)
        return Builder.cond(pred=positive, _true_fn=lambda: Builder.add(x=doubled, y=1.0), _false_fn=lambda: Builder.mul(x=b, y=-1.0))

    return save(
        Builder.program(input_specs=[Builder.TensorSpec((1,), dtype=types.fp32), Builder.TensorSpec((2,), dtype=types.fp32)])(program)
    )


@pytest.fixture(scope="session")
def palettized_package(save: Callable[..., Path]) -> Path:
    """A linear layer (64 -> 32) whose weight is a table of 16 values."""
    ct = quiet_coremltools()
    from coremltools.converters.mil.mil import Builder, types

    random = np.random.default_rng(0)
    indices, table = random.integers(0, 16, (32, 64)).astype(np.uint8), random.standard_normal((1, 1, 16, 1)).astype(np.float16)

    def program(x: Any) -> Any:
        four_bits = indices.astype(types.np_uint4_dtype)
        return Builder.linear(x=x, weight=Builder.constexpr_lut_to_dense(indices=four_bits, lut=table), name="y")

    return save(
        Builder.program(input_specs=[Builder.TensorSpec((1, 64), dtype=types.fp16)], opset_version=ct.target.iOS18)(program),
        pass_pipeline=ct.PassPipeline.EMPTY,
    )
