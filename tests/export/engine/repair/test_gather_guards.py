"""Guards of gathers go where no place is negative, and a BERT is left with its look-up on the CPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from coreflow.export.engine.placement import place
from coreflow.export.engine.repair.gather_guards import without_gather_guards
from coreflow.export.engine.repair.order import cpu_ops_first
from coreflow.export.engine.repair.repair import repair_program
from coreflow.export.engine.repair.rewrite import Builder
from coreflow.export.engine.targets import find_targets
from coreflow.export.package.coremltools_quiet import quiet_coremltools
from coreflow.export.package.graph import Graph, Value
from coreflow.export.package.mlpackage import read_program
from coreflow.export.package.write import write_program
from coreflow.export.targets.lowerings.registry import registered
from coreflow.models.spec import BOUNDS_KEY
from tests.export.engine.repair.law import facts, graph_of, off, repaired, run, types

TABLE = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float16)


def guarded(length: int = 50) -> Graph:
    """As coremltools writes an embedding since iOS17."""

    def body(new: Builder, ids: Value) -> Value:
        small = new("cast", x=ids, dtype="int16", as_dtype="int16")
        compared = new("greater_equal", x=small, y=0, as_dtype="bool")
        moved = new("add", x=small, y=length)
        places = new("select", cond=compared, a=small, b=moved, shape=ids.shape, as_dtype="int16")
        return new(
            "gather", x=TABLE, indices=new("cast", x=places, dtype="int16", as_dtype="int16"), axis=0, shape=(2, 3, 4), as_dtype="float16"
        )

    return graph_of(body, "CoreML7", ids=("int32", (2, 3)))


def test_a_guard_goes_where_bounds_say_so() -> None:
    ids = {"ids": np.array([[0, 49, 7], [1, 2, 3]], np.int32)}
    assert types(repaired(guarded(), without_gather_guards, ids, facts(bounds={"ids": (0, 49)}))) == ["gather"]


@pytest.mark.parametrize("bounds", [{}, {"ids": (-1.0, 49.0)}])
def test_a_guard_stays_where_a_place_may_be_negative(bounds: dict[str, tuple[float, float]]) -> None:
    graph = guarded()
    assert "select" in types(without_gather_guards(graph, facts(bounds=bounds)))


def test_look_ups_come_first_with_what_they_need() -> None:
    def body(new: Builder, mask: Value, ids: Value) -> Value:
        hidden = new("mul", x=mask, y=-3e4)
        less = new("sub", x=ids, y=1)
        embedded = new("gather", x=TABLE, indices=less, axis=0, shape=(3, 4), as_dtype="float16")
        places = new("cast", x=new("mul", x=mask, y=2.0), dtype="int32", as_dtype="int32")
        further = new("gather", x=TABLE, indices=places, axis=0, shape=(3, 4), as_dtype="float16")
        shifted = new("add", x=embedded, y=new("expand_dims", x=hidden, axes=(1,), shape=(3, 1)))
        return new("add", x=shifted, y=further)

    graph = graph_of(body, "CoreML7", mask=(3,), ids=("int32", (3,)))
    inputs: dict[str, Any] = {"mask": np.ones(3, np.float16), "ids": np.array([1, 2, 3], np.int32)}
    after = repaired(graph, cpu_ops_first, inputs)
    assert types(after)[:3] == ["sub", "gather", "mul"] and types(after)[-4:] == types(graph)[-4:]


class Bert(nn.Module):
    """Two layers of DistilBERT, with the masks of a BERT."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import DistilBertConfig, DistilBertModel

        self.model = DistilBertModel(DistilBertConfig(n_layers=2, vocab_size=1000, attn_implementation="eager"))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        hidden = (1 - mask[:, None, None]) * torch.finfo(torch.float32).min
        result = self.model.transformer(self.model.embeddings(ids), attention_mask=hidden)
        return result.last_hidden_state if hasattr(result, "last_hidden_state") else result[0]


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As plain coremltools converts it for iOS17."""
    ct = quiet_coremltools()
    torch.manual_seed(0)
    ids, mask = torch.zeros((16, 128), dtype=torch.int32), torch.ones(16, 128)
    with torch.no_grad():
        traced = torch.jit.trace(Bert().eval(), (ids, mask), check_trace=False)
    with registered():
        converted: Any = ct.convert(
            traced,
            inputs=[
                ct.TensorType(name="ids", shape=ids.shape, dtype=np.int32),
                ct.TensorType(name="mask", shape=mask.shape, dtype=np.float16),
            ],
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS17,
            skip_model_load=True,
        )
    converted.user_defined_metadata[BOUNDS_KEY] = '{"ids": [0, 999], "mask": [0, 1]}'
    package = tmp_path_factory.mktemp("bert") / "bert.mlpackage"
    converted.save(str(package))
    return package


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the tracer's
def test_a_bert_with_guards_and_masks_is_left_with_its_look_up(bert: Path, tmp_path: Path) -> None:
    program, target = read_program(bert), find_targets("M4/macOS27")[0]
    rng = np.random.default_rng(0)
    inputs: dict[str, Any] = {"ids": rng.integers(0, 1000, (16, 128)).astype(np.int32), "mask": np.ones((16, 128), np.float16)}

    def on_cpu(graph: Graph) -> list[str]:
        return sorted(op.type for op in place(graph, target).ops if op.device == "cpu")

    before = on_cpu(program.function()[0])
    assert {"cast", "greater_equal", "add", "select", "gather"} <= set(before) and len(before) >= 7
    repairs = repair_program(program)
    again = read_program(write_program(repairs.program, tmp_path / "repaired.mlpackage")).function()[0]
    assert on_cpu(again) == ["gather"]
    assert off(run(program.function()[0], inputs), run(again, inputs)) < 1e-12
    change = next(change for change in repairs.changes if change.repair == "without_gather_guards")
    assert change.cpu[0] - change.cpu[1] >= 5
    masks = [float(np.min(value.data)) for value in again.constants if value.dtype == "float16" and np.size(value.data) == 1]  # type: ignore[arg-type]
    assert min(masks) == -3e4
