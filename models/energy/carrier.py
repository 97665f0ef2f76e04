"""The recurrent network that all flows share: it alone decides where a flow goes next."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from coreflow.models.energy.config import EnergyConfig


class GRULayer(nn.Module):
    """One step of a GRU for every column of (B, C, 1, N); computes what ``nn.GRUCell`` does.

    >>> GRULayer(size_in=16, hidden=32)(torch.zeros(2, 16, 1, 10), torch.zeros(2, 32, 1, 10)).shape
    torch.Size([2, 32, 1, 10])

    ``nn.GRU`` would become a ``while_loop`` and ``nn.GRUCell`` needs an op the converter lacks. Reset and update gates come
    from one convolution of input and state together.
    """

    def __init__(self, size_in: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.gates = nn.Conv2d(size_in + hidden, 2 * hidden, 1)
        self.candidate_input = nn.Conv2d(size_in, hidden, 1)
        self.candidate_hidden = nn.Conv2d(hidden, hidden, 1)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """The next state (B, hidden, 1, N).

        x (B, C, 1, N): input; hidden (B, hidden, 1, N): state.
        """
        reset, update = torch.sigmoid(self.gates(torch.cat([x, hidden], 1))).split(self.hidden, 1)
        candidate = torch.tanh(self.candidate_input(x) + reset * self.candidate_hidden(hidden))
        return candidate + update * (hidden - candidate)


class Proposal(NamedTuple):
    """The next energy, place and children of every flow, as the carrier proposes them; the lattice decides whether they are taken.

    >>> processor.propose(table).energy.shape  # (B, 1, 1, N)
    """

    energy: Tensor  # (B, 1, 1, N)
    target: Tensor  # (B, 3, 1, N), in cells, not yet rounded
    spawn_logit: Tensor  # (B, 1, 1, N)
    child_shares: Tensor  # (B, K, 1, N), of the parent's energy; with the parent's own they sum to 1
    hidden: tuple[Tensor, ...]  # a (B, hidden, 1, N) per layer


class EnergyCarrier(nn.Module):
    """A stack of GRU layers and residual heads.

    >>> proposal = EnergyCarrier(config)(neuron(table.position, table.energy), table.position, table.energy, table.hidden)
    >>> proposal.target.shape  # (B, 3, 1, N)

    The heads start near zero: an untrained carrier keeps the energy, takes one step along z and does not spawn.
    """

    def __init__(self, config: EnergyConfig) -> None:
        super().__init__()
        sizes = [config.neuron_output + 1] + [config.carrier_hidden] * config.carrier_layers
        self.layers = nn.ModuleList(GRULayer(size, config.carrier_hidden) for size in sizes[:-1])
        self.max_children = config.max_spawn_per_step
        self.heads = nn.Conv2d(config.carrier_hidden, 5 + self.max_children, 1)
        nn.init.normal_(self.heads.weight, std=1e-2)
        nn.init.zeros_(self.heads.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.heads.bias[4] = -1.0  # type: ignore[index]
        self.register_buffer("ahead", torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1), persistent=False)
        self.ahead: Tensor

    def forward(self, features: Tensor, position: Tensor, energy: Tensor, hidden: tuple[Tensor, ...]) -> Proposal:
        """The ``Proposal`` for every flow.

        features (B, F, 1, N): of the neuron; position (B, 3, 1, N): in cells; energy (B, 1, 1, N); hidden: a state per layer.
        """
        x = torch.cat([features, energy], 1)
        states = []
        for layer, state in zip(self.layers, hidden, strict=True):
            x = layer(x, state)
            states.append(x)
        energy_change, step_change, spawn_logit, share_logits = self.heads(x).split([1, 3, 1, self.max_children], 1)
        # The parent's own share has logit 0.
        shares = torch.cat([torch.zeros_like(spawn_logit), share_logits], 1).softmax(1)
        return Proposal(energy + energy_change, position + self.ahead + step_change, spawn_logit, shares[:, 1:], tuple(states))
