"""The six stages that a bundle of an energy-flow model consists of: fixed shapes, named inputs and outputs, batch 1.

encoder          ids, mask -> surface
mapper_in        embedding -> surface
lattice_step     a flow table, last -> the table one step later, surface, events
mapper_out       surface -> embedding
decoder_memory   surface -> cross-attention keys and values of every layer
decoder_step     token, position, caches -> logits, caches
"""

import numpy as np
import torch
from torch import Tensor, nn

from coreflow.models.arrays import Array, Arrays
from coreflow.models.energy.config import EnergyConfig
from coreflow.models.energy.decoder import CubeToTextDecoder
from coreflow.models.energy.lattice import FlowProcessor, FlowTable, initial_table
from coreflow.models.energy.model import EnergyFlow
from coreflow.models.spec import TensorSpec
from coreflow.models.stage import Stage
from coreflow.models.t5.decoder import DecoderStep

CONTROL_TOKENS = 3  # of the Unigram tokenizer: padding, end, unknown


class LatticeStep(nn.Module):
    """One step of the flow table as flat tensors; ``table_names`` gives the order.

    >>> surface, events, *fields = LatticeStep(processor)(last, *flat_table(table))
    """

    def __init__(self, processor: FlowProcessor) -> None:
        super().__init__()
        self.processor = processor

    def forward(self, last: Tensor, *table: Tensor) -> tuple[Tensor, ...]:
        """Surface (1, S), events (1, 3), and the fields of the table one step later.

        last (1, 1, 1, 1): 1 in the final step; table: fields in the order of ``table_names``.
        """
        after, events = self.processor(_table(table), last)
        return self.processor.surface(after), torch.cat(events, 1), *after[:6], *after.hidden

    def decision_margins(self, last: Tensor, *table: Tensor) -> Tensor:
        """See ``FlowProcessor.decision_margins``."""
        return self.processor.decision_margins(_table(table))


class DecoderMemory(nn.Module):
    """Adapter and cross-attention projections, which the decoder computes once per surface.

    >>> key, value, *others = DecoderMemory(decoder)(surface)
    """

    def __init__(self, decoder: CubeToTextDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, surface: Tensor) -> tuple[Tensor, ...]:
        """A key (1, heads, d_kv, M) and a value (1, heads, M, d_kv) per layer, of ``surface`` (1, S)."""
        pairs = self.decoder.t5.cross_keys_values(self.decoder.memory(surface))
        return tuple(tensor for pair in pairs for tensor in pair)


def table_names(config: EnergyConfig) -> tuple[str, ...]:
    """Names of the fields of a flat flow table; the outputs of a step carry ``_out`` behind them."""
    return (*FlowTable._fields[:6], *(f"hidden_{layer}" for layer in range(config.carrier_layers)))


def flat_table(table: FlowTable) -> tuple[Tensor, ...]:
    """The fields in the order of ``table_names``."""
    return (*table[:6], *table.hidden)


def _table(flat: tuple[Tensor, ...]) -> FlowTable:
    position, energy, age, alive, face_energy, face_weight, *hidden = flat
    return FlowTable(position, energy, age, alive, face_energy, face_weight, tuple(hidden))


def energy_stages(model: EnergyFlow) -> tuple[Stage, ...]:
    """The stages of ``model``, in the order a sentence meets them. The modules share the model's parameters."""
    config = model.config
    surface = {"surface": TensorSpec((1, config.surface_size))}
    step = DecoderStep(model.decoder.t5, config.decode_length)
    step_inputs = step.input_specs(config.memory_tokens)
    length = config.text_length
    return (
        Stage(
            name="encoder",
            module=model.encoder,
            outputs=("surface",),
            description="Token ids to the surface that enters the lattice",
            inputs={"ids": TensorSpec((1, length), "int32", (0, config.vocabulary - 1)), "mask": TensorSpec((1, length), values=(0, 1))},
            draw=lambda seed: _draw_text(config, seed),
        ),
        Stage(
            name="mapper_in",
            module=model.mapper_in,
            inputs={"embedding": TensorSpec((1, config.embedding_size))},
            outputs=("surface",),
            description="Teacher embedding to the surface that enters the lattice",
            draw=lambda seed: _draw_embedding(config, seed),
        ),
        Stage(
            name="lattice_step",
            module=LatticeStep(model.lattice.processor),
            inputs={"last": TensorSpec((1, 1, 1, 1), values=(0, 1)), **_table_specs(config)},
            outputs=("output_surface", "events", *(f"{name}_out" for name in table_names(config))),
            description="One step of every flow in the lattice; events counts flows that arrived, died and spawned",
            draw=lambda seed: _draw_table(model, seed),
        ),
        Stage(
            name="mapper_out",
            module=model.mapper_out,
            inputs=surface,
            outputs=("embedding",),
            description="Surface that left the lattice to the teacher's embedding",
            draw=lambda seed: _draw_surface(config, seed),
        ),
        Stage(
            name="decoder_memory",
            module=DecoderMemory(model.decoder),
            inputs=surface,
            outputs=tuple(name for name in step_inputs if name.startswith("cross_")),
            description="Surface to the keys and values that the decoder attends to",
            draw=lambda seed: _draw_surface(config, seed),
        ),
        Stage(
            name="decoder_step",
            module=step,
            inputs=step_inputs,
            outputs=step.output_names,
            description="One token of the T5 decoder, with explicit key and value caches",
            draw=lambda seed: _draw_decoder(model, seed),
        ),
    )


def _table_specs(config: EnergyConfig) -> dict[str, TensorSpec]:
    """Shapes of the fields of a flow table, and the bounds of its flags."""
    table = initial_table(torch.zeros(1, config.surface_size), config)
    bounds = {"alive": (0.0, 1.0)}
    return {
        name: TensorSpec(tuple(field.shape), bounds=bounds.get(name))
        for name, field in zip(table_names(config), flat_table(table), strict=True)
    }


def _to_fp16(tensor: Tensor) -> Array:
    return tensor.detach().cpu().numpy().astype(np.float16)


def _draw_text(config: EnergyConfig, seed: int) -> Arrays:
    """A sentence of 3 to L random tokens."""
    random = np.random.default_rng(seed)
    count = int(random.integers(3, config.text_length + 1))
    mask = (np.arange(config.text_length) < count)[None]
    ids = random.integers(0, config.vocabulary, (1, config.text_length)) * mask
    return {"ids": ids.astype(np.int32), "mask": mask.astype(np.float16)}


def _draw_embedding(config: EnergyConfig, seed: int) -> Arrays:
    """A random direction, of length 1 as teachers give it."""
    vector = np.random.default_rng(seed).standard_normal((1, config.embedding_size))
    return {"embedding": (vector / np.linalg.norm(vector)).astype(np.float16)}


def _draw_surface(config: EnergyConfig, seed: int) -> Arrays:
    return {"surface": np.random.default_rng(seed).uniform(-1, 1, (1, config.surface_size)).astype(np.float16)}


@torch.no_grad()
def _draw_table(model: EnergyFlow, seed: int) -> Arrays:
    """A table that a random surface leads to after ``seed`` steps, counted round; some of its flows are out of the ordinary.

    A few flows are moved to another cell and given another energy up to twice the spawn threshold, so that the paths of a
    trained lattice are not the only ones seen. The last step is drawn in turn.
    """
    config = model.config
    random = np.random.default_rng(seed)
    surface = torch.from_numpy(random.uniform(-1, 1, (1, config.surface_size))).float()
    table = initial_table(surface, config)
    ahead = seed % max(config.depth - 1 - config.plane, 1)
    zero = torch.zeros(1, 1, 1, 1)
    for _ in range(ahead):
        table, _ = model.lattice.processor(table, zero)
    odd = torch.from_numpy(random.random(table.alive.shape) < 0.1) & (table.alive > 0)
    cells = torch.tensor([config.width, config.height]).view(1, 2, 1, 1)
    place = (torch.from_numpy(random.random((1, 2, 1, config.max_flows))) * cells).floor().float()
    position = torch.where(odd, torch.cat([place, table.position[:, 2:]], 1), table.position)
    energy = torch.from_numpy(random.uniform(-2, 2, table.energy.shape)).float() * config.spawn_threshold
    table = table._replace(position=position, energy=torch.where(odd, energy, table.energy))
    fields = dict(zip(table_names(config), map(_to_fp16, flat_table(table)), strict=True))
    return {"last": np.full((1, 1, 1, 1), seed % 4 == 3, np.float16), **fields}


@torch.no_grad()
def _draw_decoder(model: EnergyFlow, seed: int) -> Arrays:
    """The decoder after up to T - 1 random tokens on a random surface."""
    config = model.config
    random = np.random.default_rng(seed)
    decoder, length = model.decoder, config.decode_length
    cross = decoder.t5.cross_keys_values(decoder.memory(torch.from_numpy(_draw_surface(config, seed)["surface"]).float()))
    own = decoder.t5.empty_cache(length)
    tokens = [config.decoder.pad_id, *random.integers(CONTROL_TOKENS, config.decoder.vocab_size, int(random.integers(0, length))).tolist()]
    one_hot = torch.eye(length)
    for place, token in enumerate(tokens[:-1]):
        _, own = decoder.t5.step(torch.tensor([[token]]), one_hot[place : place + 1], own, cross)
    arrays = {"token": np.array([[tokens[-1]]], np.int32), "position": _to_fp16(one_hot[len(tokens) - 1][None])}
    for kind, pairs in (("self", own), ("cross", cross)):
        for layer, (key, value) in enumerate(pairs):
            arrays |= {f"{kind}_key_{layer}": _to_fp16(key), f"{kind}_value_{layer}": _to_fp16(value)}
    return arrays
