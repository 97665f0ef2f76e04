"""Planted hazards are found at their op, and a transformer of usual make is proved safe."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.export.bundle import build
from coreflow.export.engine.bounds.analysis import bounds_of
from coreflow.export.engine.bounds.hazards import Hazard, Seen, hazards, proofs_of
from coreflow.export.engine.bounds.inputs import recorded_intervals
from coreflow.export.package.graph import Graph, Op, Value
from coreflow.export.package.mlpackage import read_program
from coreflow.export.recipe import Recipe
from coreflow.models.spec import TensorSpec
from tests.export.engine.bounds.programs import constant, whole


def value(name: str, *shape: int) -> Value:
    return Value(name, "float16", shape)


def graph_of(kind: str, *shape: int, result: tuple[int, ...] | None = None, **arguments: Any) -> Graph:
    x, y = value("x", *shape), value("y", *(result or shape))
    return Graph("main", "CoreML8", (x,), (y,), (Op(kind, "y", {"x": x, **arguments}, (y,)),), ())


def found(graph: Graph, low: float, high: float, data: dict[str, Seen] | None = None) -> dict[str, Hazard]:
    return {hazard.kind: hazard for hazard in hazards(graph, bounds_of(graph, {"x": (low, high)}), data)}


PLANTED = [
    # the last magnitude of x at which the op is safe, and the first at which it is not
    ("overflow", 254.0, 257.0, graph_of("square", 4)),
    ("overflow", 11.0, 11.2, graph_of("exp", 4)),
    ("overflow", 16000.0, 16400.0, graph_of("reduce_sum", 4, result=(1,), axes=whole([0]))),
    ("sum", 30.0, 33.0, graph_of("linear", 1024, result=(1,), weight=constant(np.ones((1, 1024))))),
    ("sum", 14.0, 17.0, graph_of("linear", 1024, result=(1,), weight=constant(np.ones((1, 1024))), bias=constant([-16384.0]))),
    ("square", 125.0, 130.0, graph_of("layer_norm", 1, 64, axes=whole([-1]))),
    ("exponent", 11.0, 11.2, graph_of("reduce_log_sum_exp", 4, result=(1,), axes=whole([0]))),
]


@pytest.mark.parametrize(("kind", "safe", "unsafe", "graph"), PLANTED, ids=[f"{case[0]}-{case[3].ops[0].type}" for case in PLANTED])
def test_a_planted_hazard_is_found_where_it_begins(kind: str, safe: float, unsafe: float, graph: Graph) -> None:
    assert found(graph, -safe, safe)[kind].verdict == "proved"
    hazard = found(graph, -unsafe, unsafe)[kind]
    assert hazard.verdict == "open" and hazard.bound >= hazard.limit and hazard.op is graph.ops[0]


def test_data_that_come_near_make_a_hazard_seen() -> None:
    graph = graph_of("square", 4)
    assert found(graph, -300, 300, {"y": Seen(result=40_000.0)})["overflow"].verdict == "seen"
    assert found(graph, -300, 300, {"y": Seen(result=30_000.0)})["overflow"].verdict == "open"
    assert found(graph, -100, 100, {"y": Seen(result=9_000.0)})["overflow"].verdict == "proved"


def test_a_divisor_that_may_be_zero_is_open() -> None:
    graph = graph_of("real_div", 4, y=constant([1.0, 2.0, 0.0, 4.0]))
    assert found(graph, -1, 1)["overflow"].bound == np.inf
    assert proofs_of(hazards(graph, bounds_of(graph, {}))).share == 0


class Block(nn.Module):
    """A layer of a pre-norm transformer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.feed_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.expand, self.contract = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = (batch, length, 3, self.heads, width // self.heads)
        query, key, values = self.qkv(self.attention_norm(x)).view(heads).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) * (width // self.heads) ** -0.5 + mask
        x = x + self.out((scores.softmax(-1) @ values).transpose(1, 2).reshape(batch, length, width))
        return x + self.contract(nn.functional.gelu(self.expand(self.feed_norm(x))))


class Transformer(nn.Module):
    """Ids and mask (1, L) to logits (1, L, 1000), with a finite mask."""

    def __init__(self, layers: int, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(1000, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 1000)
        self.register_buffer("order", torch.arange(length))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.tokens(ids) + self.places(self.order)
        additive = (1 - mask)[:, None, None] * -1e4
        for block in self.blocks:
            x = block(x, additive)
        logits: Tensor = self.head(self.norm(x))
        return logits


@pytest.mark.parametrize(("layers", "width", "least"), [(2, 64, 1.0), pytest.param(12, 256, 0.9, marks=pytest.mark.slow)])
def test_a_pre_norm_transformer_is_proved_safe(layers: int, width: int, least: float, tmp_path: Path) -> None:
    """Drawn weights of torch's own scale; what stays open is the squares of late norms, whose residual stream the bounds let grow."""
    torch.manual_seed(0)
    inputs = {"ids": TensorSpec((1, 32), "int32", bounds=(0, 999)), "mask": TensorSpec((1, 32), values=(0, 1))}
    recipe = Recipe(name="t", module=Transformer(layers, width, 4, 32).eval(), inputs=inputs, outputs=("logits",))
    program = read_program(build(recipe, tmp_path, check=False))
    graph, _ = program.function()
    intervals = recorded_intervals(program, "main")
    assert intervals == {"ids": (0.0, 999.0), "mask": (0.0, 1.0)}
    listed = hazards(graph, bounds_of(graph, intervals))
    proofs = proofs_of(listed)
    assert proofs.ops >= 20 * layers and proofs.share >= least
    assert {hazard.kind for hazard in listed if hazard.verdict != "proved"} <= {"square"}
    unknown = proofs_of(hazards(graph, bounds_of(graph, {"ids": (0.0, 999.0)})))  # a mask of any size
    assert unknown.share < proofs.share
