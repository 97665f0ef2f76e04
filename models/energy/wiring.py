"""The six stages joined, whatever executes them: torch modules, Core ML or the lifted programs.

    ids, mask -> encoder -> surface ┐                                        ┌ decoder_memory -> decoder_step ... -> tokens
                                    ├ flow table -> lattice_step ... -> surface ┤
    embedding -> mapper_in -> surface ┘                                        └ mapper_out -> embedding

The loops are on this side because a loop inside a program leaves the Neural Engine.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from coreflow.models.arrays import Array, Arrays
from coreflow.models.energy.config import EnergyConfig
from coreflow.models.energy.decoding import StepFunction
from coreflow.models.energy.lattice import FlowStatistics, flow_cells, initial_table
from coreflow.models.energy.stages import flat_table, table_names
from coreflow.models.errors import InputError
from coreflow.models.family import Predict
from coreflow.models.stage import Stage


@dataclass(frozen=True, kw_only=True, eq=False)
class Carried:
    """A surface (1, S) that left the lattice, what happened on the way, and the flow table before and after every step.

    >>> carried = wiring.carry(surface)
    >>> carried.surface, carried.statistics.arrived_share, len(carried.tables)
    """

    surface: Array
    cells: Array  # (1, at most N) where its flows started
    statistics: FlowStatistics
    tables: tuple[Arrays, ...]


class Wiring:
    """The paths through the stages of one model; ``predict`` executes a stage.

    >>> wiring = Wiring(config, torch_predict({stage.name: stage for stage in energy_stages(model)}))
    >>> wiring.carry(wiring.encode(ids, mask)).surface
    """

    def __init__(self, config: EnergyConfig, predict: Predict) -> None:
        self.config = config
        self.predict = predict
        self._names = table_names(config)

    def encode(self, ids: Array, mask: Array) -> Array:
        """The surface (1, S) that enters the lattice.

        ids (1, L): token ids; mask (1, L): 1 on a token, 0 on padding.
        """
        return self.predict("encoder", {"ids": ids, "mask": mask})["surface"]

    def embedding_to_surface(self, embedding: Array) -> Array:
        """The surface (1, S) that enters the lattice for ``embedding`` (1, E)."""
        return self.predict("mapper_in", {"embedding": embedding})["surface"]

    def surface_to_embedding(self, surface: Array) -> Array:
        """The embedding (1, E) of ``surface`` (1, S), which left the lattice."""
        return self.predict("mapper_out", {"surface": surface})["embedding"]

    def carry(self, surface: Array, cells: Array | None = None) -> Carried:
        """Step after step, until no flow is alive or the last step has projected the rest onto the face.

        ``cells``: the cells that flows start from, where another run has chosen them. Which cells are the largest may differ between
        arithmetics.
        """
        steps = self.config.steps
        entering = torch.from_numpy(np.array(surface))
        chosen = flow_cells(entering, self.config.max_flows) if cells is None else torch.from_numpy(cells)
        start = initial_table(entering, self.config, cells=chosen)
        table = {name: field.numpy() for name, field in zip(self._names, flat_table(start), strict=True)}
        tables, events, output = [table], [], surface
        for step in range(steps):
            last = np.full((1, 1, 1, 1), step == steps - 1, surface.dtype)
            outputs = self.predict("lattice_step", {"last": last, **table})
            table = {name: outputs[f"{name}_out"] for name in self._names}
            output = outputs["output_surface"]
            tables.append(table)
            events.append(np.rint(outputs["events"][0]).astype(int))
            if not table["alive"].any():
                break
        return Carried(surface=output, cells=chosen.numpy(), statistics=_statistics(tables, np.array(events)), tables=tuple(tables))

    def decoder(self, surface: Array) -> tuple[StepFunction[dict[str, Array]], dict[str, Array]]:
        """A step for ``decoding.decode`` on the surface (1, S) that left the lattice, and its first state."""
        length, decoder = self.config.decode_length, self.config.decoder
        cross = dict(self.predict("decoder_memory", {"surface": surface}))
        one_hot = np.eye(length, dtype=surface.dtype)
        key, value = (1, decoder.num_heads, decoder.d_kv, length), (1, decoder.num_heads, length, decoder.d_kv)
        empty = {
            f"self_{kind}_{layer}": np.zeros(shape, surface.dtype)
            for layer in range(decoder.num_layers)
            for kind, shape in (("key", key), ("value", value))
        }

        def step(token: int, position: int, own: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
            if not 0 <= position < length:
                raise InputError(f"position {position}; the decoder writes {length} tokens at most")
            inputs: Arrays = {"token": np.array([[token]], np.int32), "position": one_hot[position : position + 1], **own, **cross}
            outputs = self.predict("decoder_step", inputs)
            return outputs["logits"][0, : self.config.decoder_tokens], {name: outputs[f"{name}_out"] for name in own}

        return step, empty


def torch_predict(stages: Mapping[str, Stage], dtype: torch.dtype = torch.float32) -> Predict:
    """Stages executed by their torch modules, as they are, with floats in ``dtype``."""

    @torch.no_grad()
    def predict(name: str, inputs: Arrays) -> Arrays:
        stage = stages[name]
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[key])) for key in stage.inputs]
        result = stage.module(*(tensor.to(dtype) if tensor.is_floating_point() else tensor for tensor in tensors))
        results = (result,) if isinstance(result, torch.Tensor) else result
        return {key: tensor.numpy() for key, tensor in zip(stage.outputs, results, strict=True)}

    return predict


def _statistics(tables: Sequence[Arrays], events: Array) -> FlowStatistics:
    """``events`` is (steps, 3): arrived, died, spawned."""
    alive = [table["alive"] > 0.5 for table in tables[:-1]]
    arrived, died, spawned = (int(total) for total in events.sum(0))
    return FlowStatistics(
        steps=len(events),
        active=tuple(int(flows.sum()) for flows in alive),
        mean_energy=tuple(float(np.abs(table["energy"][flows]).mean()) for table, flows in zip(tables, alive, strict=False)),
        started=int(alive[0].sum()),
        arrived=arrived,
        died=died,
        spawned=spawned,
    )
