"""The 327 published programs of segmenter-models.json.gz, as features; what the file holds stands in README.md."""

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from coreflow.export.engine.features import Features, Tensor
from coreflow.export.engine.targets import Backend

_FILE = Path(__file__).parent / "segmenter-models.json.gz"
_DTYPES = {"f16": "float16", "f32": "float32", "i32": "int32", "i16": "int16", "u16": "uint16", "i8": "int8", "b": "bool"}
_OPS = {"sdpa": "scaled_dot_product_attention"}


@dataclass(frozen=True)
class PublishedOp:
    """One op with what was published of it; `is_read` where the estimates were read, not computed from a formula."""

    features: Features
    backends: tuple[Backend, ...]
    ms: Mapping[Backend, float]
    is_read: bool


@dataclass(frozen=True)
class PublishedProgram:
    """One program, the device of every op (A engine, C CPU), and the published shares of its cost, if there are any."""

    name: str
    devices: str
    shares: tuple[float, ...] | None
    ops: tuple[PublishedOp, ...]


@cache
def published_programs() -> tuple[PublishedProgram, ...]:
    with gzip.open(_FILE, "rt") as file:
        models = json.load(file)["models"]
    return tuple(
        PublishedProgram(model["name"], model["device"], model["share"] and tuple(model["share"]), tuple(_op(op) for op in model["ops"]))
        for model in models
    )


def _op(plain: dict[str, Any]) -> PublishedOp:
    attr, inputs = plain["attr"], _tensors(plain["ins"])
    picks_at_run_time = plain["type"] == "gather" and (len(inputs) == 2 or inputs[0].dtype == "int16")
    features = Features(
        type=_OPS.get(plain["type"], plain["type"]),
        inputs=inputs,
        constants=_tensors(plain["consts"]),
        outputs=_tensors(plain["outs"]),
        kernel=tuple(attr.get("kernel", ())),
        groups=attr.get("groups", 1),
        dilations=tuple(attr.get("dil", ())),
        contraction=attr.get("K", 0),
        permutation=tuple(attr.get("perm", ())),
        run_time_weight=plain["type"] == "conv" and len(inputs) == 2,
        run_time_index=picks_at_run_time or (plain["type"] == "slice_by_size" and len(inputs) == 2),
    )
    return PublishedOp(features, tuple(plain["support"]), plain["est"], plain["src"] != "rule")


def _tensors(plain: list[Any]) -> tuple[Tensor, ...]:
    return tuple(Tensor(tuple(shape), _DTYPES[dtype]) for shape, dtype in plain)
