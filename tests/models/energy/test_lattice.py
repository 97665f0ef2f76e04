"""The flow step, against a slow version that treats one flow after the other as the rules are written."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from coreflow.models.arrays import Array
from coreflow.models.energy.config import EnergyConfig, find_preset
from coreflow.models.energy.lattice import EnergyLattice, Events, FlowProcessor, FlowTable, flow_cells, initial_table
from coreflow.models.errors import InputError

DEMO = find_preset("demo").config("demo", vocabulary=32, decoder_vocabulary=32)
SMALL = replace(DEMO, width=3, height=4, depth=5, max_flows=14, carrier_hidden=6, carrier_layers=2, max_spawn_per_step=3)


# --- the oracle -----------------------------------------------------------------------------------------------------------


@dataclass
class Flow:
    position: list[float]
    energy: float
    age: float
    hidden: list[Array]


@dataclass
class Run:
    """Slots hold a flow or None; the face holds (energy, weight) of every flow that arrived in a cell."""

    slots: list[Flow | None]
    face: dict[tuple[int, int], list[tuple[float, float]]]


@torch.no_grad()
def propose_one(processor: FlowProcessor, flow: Flow) -> tuple[float, Array, float, Array, list[Array]]:
    column = lambda values: torch.tensor(np.asarray(values, np.float64)).view(1, -1, 1, 1)  # noqa: E731
    energy = column([flow.energy])
    features = processor.neuron(column(flow.position), energy)
    proposal = processor.carrier(features, column(flow.position), energy, tuple(column(state) for state in flow.hidden))
    return (
        proposal.energy.item(),
        proposal.target.flatten().numpy(),
        proposal.spawn_logit.item(),
        proposal.child_shares.flatten().numpy(),
        [state.flatten().numpy() for state in proposal.hidden],
    )


def slow_step(processor: FlowProcessor, run: Run, last: bool) -> dict[str, int]:
    config = processor.config
    extents = (config.width, config.height, config.depth)
    counts = {"arrived": 0, "died": 0, "spawned": 0}
    moved: list[tuple[int, Flow, float, Array]] = []
    dying: list[tuple[int, Flow]] = []
    staying: list[tuple[int, Flow, float, Array]] = []
    arriving: list[tuple[int, Flow]] = []
    for slot, flow in enumerate(run.slots):
        if flow is None:
            continue
        energy, target, logit, shares, hidden = propose_one(processor, flow)
        cell = [float(np.round(min(max(value, 0), extent - 1))) for value, extent in zip(target, extents, strict=True)]
        after = Flow(cell, energy, flow.age, hidden)
        if cell[2] <= flow.position[2] or abs(energy) < config.energy_threshold:
            dying.append((slot, after))
        else:
            moved.append((slot, after, logit, shares))
    for slot, flow, logit, shares in moved:
        if last or flow.position[2] >= config.depth - 1:
            arriving.append((slot, flow))
        else:
            staying.append((slot, flow, logit, shares))
    if not moved and not run.face:
        arriving, dying = dying, []
    for _, flow in arriving:
        weight = max(abs(flow.energy), 2.0**-10) * (1 + 0.1 * flow.age)
        run.face.setdefault((int(flow.position[1]), int(flow.position[0])), []).append((flow.energy, weight))
    counts["arrived"], counts["died"] = len(arriving), len(dying)
    slots: list[Flow | None] = [None] * len(run.slots)
    for slot, flow, _, _ in staying:
        slots[slot] = flow
    free = [slot for slot, flow in enumerate(slots) if flow is None]
    for _, flow, logit, shares in staying:
        parent_energy = flow.energy
        if abs(parent_energy) <= config.spawn_threshold or logit <= 0:
            continue
        for share in shares:
            if abs(share * parent_energy) < config.energy_threshold:
                continue
            if counts["spawned"] == config.max_spawn_per_step or not free:
                break
            slots[free.pop(0)] = Flow(list(flow.position), share * parent_energy, 0.0, [state.copy() for state in flow.hidden])
            flow.energy -= share * parent_energy
            counts["spawned"] += 1
    for flow in slots:
        if flow is not None:
            flow.age += 1
    run.slots = slots
    return counts


# --- from one form to the other -------------------------------------------------------------------------------------------


def to_run(table: FlowTable) -> Run:
    slots: list[Flow | None] = []
    for n in range(table.alive.shape[3]):
        if not table.alive[0, 0, 0, n]:
            slots.append(None)
            continue
        slots.append(
            Flow(
                table.position[0, :, 0, n].tolist(),
                table.energy[0, 0, 0, n].item(),
                table.age[0, 0, 0, n].item(),
                [state[0, :, 0, n].numpy().copy() for state in table.hidden],
            )
        )
    face = {}
    for row, column in np.argwhere(table.face_weight[0, 0].numpy() > 0):
        weight = table.face_weight[0, 0, row, column].item()
        face[row, column] = [(table.face_energy[0, 0, row, column].item() / weight, weight)]
    return Run(slots, face)


def assert_same(table: FlowTable, run: Run) -> None:
    for n, flow in enumerate(run.slots):
        assert table.alive[0, 0, 0, n].item() == (flow is not None), f"slot {n}"
        position, energy, age = table.position[0, :, 0, n].numpy(), table.energy[0, 0, 0, n].item(), table.age[0, 0, 0, n].item()
        hidden = [state[0, :, 0, n].numpy() for state in table.hidden]
        if flow is None:
            assert not any(field.any() for field in (position, *hidden)) and energy == age == 0, f"slot {n} is free but not empty"
            continue
        np.testing.assert_array_equal(position, flow.position)
        np.testing.assert_allclose(energy, flow.energy, rtol=1e-9, atol=1e-12)
        assert age == flow.age
        for actual, reference in zip(hidden, flow.hidden, strict=True):
            np.testing.assert_allclose(actual, reference, rtol=1e-9, atol=1e-12)
    config_face = np.zeros(table.face_weight.shape[2:]), np.zeros(table.face_weight.shape[2:])
    for place, arrivals in run.face.items():
        config_face[0][place] = sum(energy * weight for energy, weight in arrivals)
        config_face[1][place] = sum(weight for _, weight in arrivals)
    np.testing.assert_allclose(table.face_energy[0, 0].numpy(), config_face[0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(table.face_weight[0, 0].numpy(), config_face[1], rtol=1e-9, atol=1e-12)


def wild_processor(config: EnergyConfig, seed: int) -> FlowProcessor:
    """Heads far from zero: flows wander, gain and lose energy, and many of them want to spawn."""
    torch.manual_seed(seed)
    processor = FlowProcessor(config).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        processor.carrier.heads.weight.normal_(0, 1.5, generator=generator)
        processor.carrier.heads.get_parameter("bias")[:5] = torch.tensor([0.1, 0.0, 0.0, 0.4, 1.0])
    return processor


def random_table(config: EnergyConfig, seed: int, share_alive: float, energy: float = 1.5) -> FlowTable:
    generator = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    slots = config.max_flows
    alive = (rand(1, 1, 1, slots) < share_alive).double()
    extents = torch.tensor([config.width, config.height, config.depth - 1], dtype=torch.float64).view(1, 3, 1, 1)
    on_face = (rand(1, 1, config.height, config.width) < 0.2).double()
    weight = on_face * (0.1 + rand(1, 1, config.height, config.width))
    return FlowTable(
        position=(rand(1, 3, 1, slots) * extents).floor() * alive,
        energy=(rand(1, 1, 1, slots) * 2 - 1) * energy * alive,
        age=(rand(1, 1, 1, slots) * 5).floor() * alive,
        alive=alive,
        face_energy=weight * (rand(1, 1, config.height, config.width) - 0.5),
        face_weight=weight,
        hidden=tuple((rand(1, config.carrier_hidden, 1, slots) - 0.5) * alive for _ in range(config.carrier_layers)),
    )


def no_last(value: float = 0.0) -> torch.Tensor:
    return torch.full((1, 1, 1, 1), value, dtype=torch.float64)


# --- the rules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tables", "least"), [(140, 7), pytest.param(400, 20, marks=pytest.mark.slow)])
def test_step_equals_the_per_flow_oracle_on_hundreds_of_random_tables(tables: int, least: int) -> None:
    seen = {"arrived": 0, "died": 0, "spawned": 0, "full": 0, "cut": 0, "last": 0}
    for seed in range(tables):
        processor = wild_processor(SMALL, seed % 20)
        share = (0.05, 0.4, 0.8, 1.0)[seed % 4]
        table = random_table(SMALL, seed, share, energy=(0.3, 3.0)[seed % 2])
        if seed % 5 == 0:
            # Crowded at the entrance: nobody arrives, the few free slots fill up.
            table = random_table(SMALL, seed, 0.9, energy=3.0)
            table = table._replace(position=table.position * torch.tensor([1.0, 1.0, 0.0]).view(1, 3, 1, 1))
            processor.carrier.heads.get_parameter("bias").data[1:4] = torch.tensor([0.0, 0.0, 1.0])
        last = seed % 7 == 0
        run = to_run(table)
        counts = slow_step(processor, run, last)
        with torch.no_grad():
            after, events = processor(table, no_last(float(last)))
        assert_same(after, run)
        assert {name: int(getattr(events, name).item()) for name in Events._fields} == counts
        for name, value in counts.items():
            seen[name] += value
        seen["full"] += all(flow is not None for flow in run.slots)
        seen["cut"] += counts["spawned"] == SMALL.max_spawn_per_step
        seen["last"] += last
    # The tables reached what they were drawn for.
    assert all(count >= least for count in seen.values()), seen


def test_children_take_their_energy_from_the_parent() -> None:
    processor = wild_processor(SMALL, 3)
    spawned = 0
    for seed in range(50):
        table = random_table(SMALL, seed, 0.5, energy=3.0)
        table = table._replace(position=table.position * torch.tensor([1.0, 1.0, 0.0]).view(1, 3, 1, 1))
        with torch.no_grad():
            proposal = processor.propose(table)
            after, events = processor(table, no_last())
        lost = (events.died + events.arrived).item()
        spawned += int(events.spawned.item())
        if lost == 0:
            np.testing.assert_allclose(after.energy.sum(), (proposal.energy * table.alive).sum(), rtol=1e-9)
    assert spawned > 20


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("energy", [0.0, 1e-3, 1.0, 3.0])
def test_output_surface_is_never_empty(seed: int, energy: float) -> None:
    torch.manual_seed(seed)
    lattice = EnergyLattice(SMALL).double().eval()
    lattice.processor = wild_processor(SMALL, seed)
    surface = (torch.rand(1, SMALL.surface_size, dtype=torch.float64) * 2 - 1) * energy
    table = initial_table(surface, SMALL)
    with torch.no_grad():
        for step in range(SMALL.steps):
            table, _ = lattice.processor(table, no_last(float(step == SMALL.steps - 1)))
    assert not table.alive.any()
    assert (table.face_weight > 0).any()
    assert torch.isfinite(lattice.processor.surface(table)).all()


def test_an_untrained_lattice_carries_the_surface_straight_through() -> None:
    config = replace(DEMO, energy_threshold=0.0)
    torch.manual_seed(0)
    lattice = EnergyLattice(config).double().eval()
    torch.nn.init.zeros_(lattice.processor.carrier.heads.weight)
    surface = torch.rand(2, config.surface_size, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(lattice(surface), surface)


def test_a_flow_below_the_threshold_dies_and_leaves_its_cell_at_zero() -> None:
    torch.manual_seed(0)
    lattice = EnergyLattice(DEMO).double().eval()
    torch.nn.init.zeros_(lattice.processor.carrier.heads.weight)
    surface = torch.full((1, DEMO.surface_size), 0.5, dtype=torch.float64)
    surface[0, 5] = DEMO.energy_threshold * 0.9
    surface[0, 6] = -DEMO.energy_threshold * 1.1
    surface[0, 7] = DEMO.energy_threshold
    with torch.no_grad():
        out = lattice(surface)[0]
    assert out[5] == 0
    assert out[7] == pytest.approx(DEMO.energy_threshold)  # at the threshold is not below it
    assert out[6] == pytest.approx(surface[0, 6].item())


def test_more_cells_than_slots_keeps_the_largest_magnitudes_in_the_order_of_their_cells() -> None:
    config = replace(DEMO, max_flows=10)
    surface = torch.linspace(-1, 0.5, config.surface_size).view(1, -1)
    table = initial_table(surface, config)
    expected = sorted(sorted(range(config.surface_size), key=lambda cell: -abs(surface[0, cell].item()))[:10])
    cells = (table.position[0, 1, 0] * config.width + table.position[0, 0, 0]).int().tolist()
    assert cells == expected
    torch.testing.assert_close(table.energy[0, 0, 0], surface[0, expected])
    assert table.alive.sum() == 10


def test_batched_rows_do_not_see_each_other() -> None:
    processor = wild_processor(SMALL, 5)
    tables = [random_table(SMALL, seed, 0.6) for seed in (1, 2, 3)]
    hidden = tuple(torch.cat(layer) for layer in zip(*(table.hidden for table in tables), strict=True))
    position, energy, age, alive, face_energy, face_weight = (
        torch.cat(parts) for parts in zip(*(table[:6] for table in tables), strict=True)
    )
    together = FlowTable(position, energy, age, alive, face_energy, face_weight, hidden)
    with torch.no_grad():
        after, _ = processor(together, no_last())
        for row, table in enumerate(tables):
            alone, _ = processor(table, no_last())
            torch.testing.assert_close(after.energy[row : row + 1], alone.energy)
            torch.testing.assert_close(after.face_energy[row : row + 1], alone.face_energy)


def test_gradients_reach_every_head_of_the_carrier() -> None:
    processor = wild_processor(SMALL, 2).train()
    table = random_table(SMALL, 1, 0.8, energy=3.0)
    after, events = processor(table, no_last())
    assert events.spawned > 0 and events.arrived > 0
    (after.energy.square().sum() + after.face_energy.square().sum() + after.position.square().sum()).backward()
    gradient = processor.carrier.heads.weight.grad
    assert gradient is not None and (gradient.abs().sum((1, 2, 3)) > 0).all()


def test_decision_margin_is_the_distance_at_which_a_decision_flips() -> None:
    processor = wild_processor(SMALL, 4)
    table = random_table(SMALL, 9, 0.7, energy=3.0)
    with torch.no_grad():
        margins = processor.decision_margins(table)
        proposal = processor.propose(table)
    assert margins.shape == (1, 4 + SMALL.max_spawn_per_step, 1, SMALL.max_flows)
    assert torch.isinf(margins[0, 0, 0][table.alive[0, 0, 0] == 0]).all()
    for slot in table.alive[0, 0, 0].nonzero().flatten().tolist():
        expected = abs(abs(proposal.energy[0, 0, 0, slot].item()) - SMALL.energy_threshold)
        assert margins[0, 0, 0, slot].item() == pytest.approx(expected)
        target = min(max(proposal.target[0, 0, 0, slot].item(), 0), SMALL.width - 1)
        beyond = 1.001 * margins[0, 1, 0, slot].item()
        assert {round(target - beyond), round(target + beyond)} != {round(target)}


def test_a_surface_of_the_wrong_size_is_refused() -> None:
    with pytest.raises(InputError, match="takes 8 x 8 = 64"):
        initial_table(torch.zeros(1, 63), DEMO)


def test_flows_start_from_given_cells_instead_of_the_largest() -> None:
    config = replace(DEMO, max_flows=4)
    surface = torch.linspace(-1, 0.5, config.surface_size).view(1, -1)
    given = torch.tensor([[3, 10, 20, 63]])
    assert not torch.equal(flow_cells(surface, 4), given)
    table = initial_table(surface, config, cells=given)
    torch.testing.assert_close(table.energy[0, 0, 0], surface[0, given[0]])
    assert (table.position[0, 1, 0] * config.width + table.position[0, 0, 0]).int().tolist() == given[0].tolist()
