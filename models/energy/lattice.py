"""Flows that carry a surface through the lattice to the opposite face.

The state is a table of N slots; a step treats all of them at once with static shapes and without gather, scatter, sort or
prefix sum, none of which stays on the engine: ranks are products with a triangular matrix, selection is a product with a
0/1 matrix. All counts are whole numbers in fp16, exact up to 2048; a larger rank only has to stay above every slot number.

Shapes: B batch, N slots, C hidden size of the carrier, H, W, D cells of the lattice, S = H * W, K children per flow, R spawns per step.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from coreflow.models.energy.carrier import EnergyCarrier, Proposal
from coreflow.models.energy.config import EnergyConfig
from coreflow.models.energy.neuron import SimpleNeuron, cell_weights
from coreflow.models.errors import InputError

# What a flow of no energy weighs on the face, so that a cell that was reached never divides by zero. A power of two, normal in fp16.
MIN_WEIGHT = 2.0**-10
# How much a step of age adds to the weight of a flow on the face.
AGE_WEIGHT = 0.1


class FlowTable(NamedTuple):
    """The flows under way, and what has reached the face. Every field of a free slot is zero.

    >>> table = initial_table(surface, config)
    >>> table.alive.sum()  # flows under way
    """

    position: Tensor  # (B, 3, 1, N) x, y, z in whole cells
    energy: Tensor  # (B, 1, 1, N)
    age: Tensor  # (B, 1, 1, N) in steps
    alive: Tensor  # (B, 1, 1, N) 1 or 0
    face_energy: Tensor  # (B, 1, H, W) sum of weight * energy of the flows that arrived
    face_weight: Tensor  # (B, 1, H, W) sum of their weights
    hidden: tuple[Tensor, ...]  # a (B, C, 1, N) per layer of the carrier


class Events(NamedTuple):
    """Numbers of flows that arrived, died and were spawned in one step, (B, 1) each.

    >>> table, events = processor(table, last)
    >>> events.arrived, events.died, events.spawned
    """

    arrived: Tensor
    died: Tensor
    spawned: Tensor


def straight_through(value: Tensor, soft: Tensor) -> Tensor:
    """``value`` forwards, its own gradient and that of ``soft`` backwards; just ``value`` where nothing is being trained."""
    # The difference first: it is 0 to the last bit, so that cells stay whole numbers and selections stay 0 or 1.
    return value + (soft - soft.detach()) if soft.requires_grad else value


def flow_cells(surface: Tensor, slots: int) -> Tensor:
    """The cells of a surface (B, S) that flows start from, in rising order: all, or those of the N largest magnitudes when S > N."""
    batch, size = surface.shape
    if size <= slots:
        return torch.arange(size, device=surface.device).expand(batch, -1)
    # Ties go to the lower cell.
    return torch.sort(surface.abs(), dim=1, descending=True, stable=True).indices[:, :slots].sort(1).values


def initial_table(surface: Tensor, config: EnergyConfig, slots: int | None = None, cells: Tensor | None = None) -> FlowTable:
    """One flow per cell of a surface (B, S), with the cell's value as energy; the N largest by magnitude when S > N.

    ``slots`` is N where it is to be less than ``config.max_flows``; ``cells`` (B, at most N) are those to start from, where they are
    not to be chosen here.
    """
    size = surface.shape[1]
    if size != config.surface_size:
        raise InputError(f"surface of {size} cells; this lattice takes {config.height} x {config.width} = {config.surface_size}")
    batch, slots = len(surface), slots or config.max_flows
    cells = flow_cells(surface, slots) if cells is None else cells
    count = cells.shape[1]
    energy = surface.gather(1, cells)
    place = torch.stack([cells % config.width, cells // config.width, torch.full_like(cells, config.plane)], 1).to(surface.dtype)

    def fill(values: Tensor) -> Tensor:
        return nn.functional.pad(values, (0, slots - count)).unsqueeze(2)

    face = surface.new_zeros(batch, 1, config.height, config.width)
    return FlowTable(
        position=fill(place),
        energy=fill(energy[:, None]),
        age=surface.new_zeros(batch, 1, 1, slots),
        alive=fill(torch.ones_like(energy)[:, None]),
        face_energy=face,
        face_weight=face,
        hidden=tuple(surface.new_zeros(batch, config.carrier_hidden, 1, slots) for _ in range(config.carrier_layers)),
    )


class FlowProcessor(nn.Module):
    """One step of every flow: propose, die or arrive, spawn, age.

    >>> table, events = processor(initial_table(surface, config), last=torch.zeros(1, 1, 1, 1))
    """

    def __init__(self, config: EnergyConfig) -> None:
        super().__init__()
        self.config = config
        self.neuron = SimpleNeuron(config)
        self.carrier = EnergyCarrier(config)
        slots, children = config.max_flows, config.max_spawn_per_step
        # x @ earlier: for each slot the sum over the slots before it.
        self.register_buffer("earlier_slots", torch.ones(slots, slots).triu(1), persistent=False)
        self.register_buffer("earlier_children", torch.ones(children, children).tril(-1).view(children, children, 1, 1), persistent=False)
        self.register_buffer("spawn_ranks", torch.arange(float(children)).view(1, 1, children, 1), persistent=False)
        self.register_buffer(
            "last_cell", torch.tensor([config.width, config.height, config.depth]).view(1, 3, 1, 1) - 1.0, persistent=False
        )
        self.earlier_slots: Tensor
        self.earlier_children: Tensor
        self.spawn_ranks: Tensor
        self.last_cell: Tensor

    def propose(self, table: FlowTable) -> Proposal:
        """The carrier's proposal for every flow of ``table``."""
        features = self.neuron(table.position, table.energy)
        return self.carrier(features, table.position, table.energy, table.hidden)

    def forward(self, table: FlowTable, last: Tensor) -> tuple[FlowTable, Events]:
        """The table one step later; ``last`` (B, 1, 1, 1) is 1 in the final step, which projects whatever is alive onto the face.

        A step that would end a run with nothing on the face projects the flows that die in it: the output is never empty.
        """
        proposal = self.propose(table)
        inside = self._inside(proposal.target)
        cell = straight_through(inside.round(), inside)
        survives = table.alive * self._advances(table, cell) * self._at_least(proposal.energy.abs(), self.config.energy_threshold)
        arrives = torch.clamp(cell[:, 2:3] - self.last_cell[:, 2:3] + 1, 0, 1).detach()
        projected = survives * torch.maximum(arrives, last)
        remaining = survives - projected
        # Nothing alive after this step, nothing on the face before it: rescue what there is.
        barren = torch.relu(1 - survives.sum((1, 2, 3), keepdim=True)) * (table.face_weight.sum((1, 2, 3), keepdim=True) <= 0).to(survives)
        rescued = table.alive * barren
        face_energy, face_weight = self._collect(table, proposal.energy, cell, projected + rescued, survives)
        position, energy, alive, hidden, spawned = self._spawn(proposal, cell, remaining)
        after = FlowTable(
            position=position,
            energy=energy,
            age=(table.age * remaining + 1) * alive,
            alive=alive,
            face_energy=table.face_energy + face_energy,
            face_weight=table.face_weight + face_weight,
            hidden=hidden,
        )

        def count(flows: Tensor) -> Tensor:
            return flows.sum((1, 2, 3)).unsqueeze(1)

        arrived = projected + rescued
        return after, Events(count(arrived), count(table.alive - remaining - arrived), count(spawned))

    def surface(self, table: FlowTable) -> Tensor:
        """Mean energy of the flows that met in each cell of the face: (B, S), zero where none arrived."""
        return (table.face_energy / table.face_weight.clamp(min=MIN_WEIGHT)).flatten(1)

    def decision_margins(self, table: FlowTable) -> Tensor:
        """Distance of every decision of a step from its border, (B, 4 + K, 1, N); infinite in free slots.

        In order: survival (energy), the roundings of x, y and z (cells), and for each child whether it is born. A decision
        nearer to its border than the error of an arithmetic may fall either way in that arithmetic.
        """
        proposal = self.propose(table)
        magnitude = proposal.energy.abs()
        threshold = self.config.energy_threshold
        beyond_half = self._inside(proposal.target) - 0.5
        # A conjunction flips when its least condition does.
        spawns = torch.minimum(magnitude - self.config.spawn_threshold, proposal.spawn_logit)
        born = torch.minimum(spawns, proposal.child_shares * magnitude - threshold)
        margins = torch.cat([magnitude - threshold, beyond_half - beyond_half.round(), born], 1).abs()
        return margins.masked_fill(table.alive == 0, torch.inf)

    def _inside(self, target: Tensor) -> Tensor:
        """Clamped to the lattice before it is rounded: both borders are whole numbers."""
        return torch.minimum(target.clamp(min=0), self.last_cell)

    @staticmethod
    def _advances(table: FlowTable, cell: Tensor) -> Tensor:
        # Whole numbers: at least one cell ahead or not.
        return torch.clamp(cell[:, 2:3] - table.position[:, 2:3], 0, 1).detach()

    @staticmethod
    def _at_least(value: Tensor, threshold: float) -> Tensor:
        return (value >= threshold).to(value.dtype)

    def _collect(self, table: FlowTable, energy: Tensor, cell: Tensor, arrived: Tensor, survives: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted energies and weights per cell of the face, each (B, 1, H, W)."""
        weight = energy.abs().clamp(min=MIN_WEIGHT) * (1 + AGE_WEIGHT * table.age) * arrived
        weighted = weight * energy
        if self.training:
            # Backwards, a flow that died weighs as much as a flow of no energy. A cell that nothing reached then has a slope
            # of 1 (``surface`` divides by this weight), and the energy of its flow can grow back over the threshold.
            weighted = straight_through(weighted, MIN_WEIGHT * (table.alive - survives).detach() * energy)
        # No gradient to the place: a linear share in the neighbouring cells makes flows collide early on, and training then needs
        # half as many steps again. Where to go is learned through the neuron, which sees the place in the step after.
        row, column = (
            cell_weights(cell[:, axis : axis + 1].detach(), cells) for axis, cells in ((1, self.config.height), (0, self.config.width))
        )
        column = column.transpose(-1, -2)
        return torch.matmul(row * weighted, column), torch.matmul(row * weight, column)

    def _spawn(self, proposal: Proposal, cell: Tensor, remaining: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...], Tensor]:
        """Position, energy, alive and hidden after spawning into free slots, and the new flows as a 0/1 tensor (B, 1, 1, N).

        A flow above the spawn threshold whose logit is positive spawns every child that would be born above the energy
        threshold. Order: by slot of the parent, then by number of the child; first free slot first.
        """
        magnitude, shares = proposal.energy.abs(), proposal.child_shares
        above = (magnitude > self.config.spawn_threshold).to(magnitude.dtype)
        willing = straight_through((proposal.spawn_logit > 0).to(magnitude.dtype), proposal.spawn_logit.sigmoid())
        wanted = (remaining * above * willing).detach() * self._at_least(shares * magnitude, self.config.energy_threshold)  # (B, K, 1, N)
        if self.training and not wanted.any():
            # What follows would select nothing, at the cost of products of the size of (B, K, R, N).
            return (
                cell * remaining,
                proposal.energy * remaining,
                remaining,
                tuple(state * remaining for state in proposal.hidden),
                0 * remaining,
            )
        earlier = self.earlier_slots[: remaining.shape[3], : remaining.shape[3]]
        rank = torch.matmul(wanted.sum(1, keepdim=True), earlier) + nn.functional.conv2d(wanted, self.earlier_children)
        free = 1 - remaining
        free_rank = torch.matmul(free, earlier)
        room = torch.clamp(free.sum((1, 2, 3), keepdim=True) - self.spawn_ranks, 0, 1)  # (B, 1, R, 1)
        # taken[b, k, r, n]: the r-th spawn is child k of slot n.
        taken = torch.relu(1 - (rank - self.spawn_ranks).abs()) * wanted * room  # (B, K, R, N)
        parent = taken.sum(1, keepdim=True)  # (B, 1, R, N)
        slot = torch.relu(1 - (free_rank - self.spawn_ranks).abs()) * free * parent.sum(3, keepdim=True)  # (B, 1, R, N)
        to_spawn = parent.transpose(2, 3)

        def settle(values: Tensor) -> Tensor:
            """(B, C, 1, N): what stays in its slot, and the children's copies in theirs."""
            channels = values.view(values.shape[0], 1, -1, values.shape[3])
            copies = torch.matmul(torch.matmul(channels, to_spawn), slot)
            return values * remaining + copies.view(values.shape)

        given = (taken.sum(2, keepdim=True) * shares).sum(1, keepdim=True) * willing  # (B, 1, 1, N)
        child_energy = (taken * (shares * proposal.energy)).sum((1, 3), keepdim=True)  # (B, 1, R, 1)
        newborn = slot.sum(2, keepdim=True)
        energy = proposal.energy * (1 - given) * remaining + (child_energy * slot).sum(2, keepdim=True)
        return settle(cell), energy, remaining + newborn, tuple(settle(state) for state in proposal.hidden), newborn


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowStatistics:
    """One run of the lattice, as numbers.

    >>> statistics = chain.run("the old mill").statistics
    >>> statistics.steps, statistics.arrived_share
    """

    steps: int
    active: tuple[int, ...]  # flows alive before each step
    mean_energy: tuple[float, ...]  # their mean magnitude
    started: int
    arrived: int
    died: int
    spawned: int

    @property
    def arrived_share(self) -> float:
        """Share of all flows, spawned ones included, that reached the face or were projected onto it."""
        return self.arrived / max(self.started + self.spawned, 1)


class EnergyLattice(nn.Module):
    """Surface in, surface out: the flows of a surface, carried to the face.

    >>> lattice = EnergyLattice(config)
    >>> lattice(surface).shape == surface.shape  # (B, S)
    True
    """

    def __init__(self, config: EnergyConfig) -> None:
        super().__init__()
        self.config = config
        self.processor = FlowProcessor(config)

    def forward(self, surface: Tensor) -> Tensor:
        """The surface (B, S) that leaves the lattice for the ``surface`` (B, S) that enters it."""
        config = self.config
        # A free slot costs as much as a flow: training keeps room for one step's spawns only.
        slots = min(config.max_flows, config.surface_size + config.max_spawn_per_step) if self.training else config.max_flows
        table = initial_table(surface, config, slots)
        for step in range(config.steps):
            last = surface.new_full((1, 1, 1, 1), float(step == config.steps - 1))
            table, _ = self.processor(table, last)
            if not table.alive.any():
                break
        return self.processor.surface(table)
