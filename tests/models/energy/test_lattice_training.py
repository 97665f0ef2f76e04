"""What training adds to the flow step: gradients, and nothing else."""

from dataclasses import replace

import pytest
import torch

from coreflow.models.energy.config import find_preset
from coreflow.models.energy.lattice import EnergyLattice, straight_through

DEMO = find_preset("demo").config("demo", vocabulary=32, decoder_vocabulary=32)


def make_lattice(seed: int, spread: float) -> EnergyLattice:
    torch.manual_seed(seed)
    lattice = EnergyLattice(replace(DEMO, injection_plane=0)).double()
    torch.nn.init.normal_(lattice.processor.carrier.heads.weight, std=spread)
    return lattice


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.5], ids=["straight", "some spawn", "wild"])
@pytest.mark.parametrize("seed", range(5))
def test_training_computes_the_surface_of_evaluation(seed: int, spread: float) -> None:
    lattice = make_lattice(seed, spread)
    # Few enough flows at the start that both tables have room for all children.
    surface = (torch.rand(3, DEMO.surface_size, dtype=torch.float64) * 4 - 2).requires_grad_()
    lattice.processor.config = lattice.config = replace(lattice.config, max_flows=DEMO.surface_size + DEMO.max_spawn_per_step)
    trained = lattice.train()(surface)
    with torch.no_grad():
        evaluated = lattice.eval()(surface)
    assert trained.requires_grad
    torch.testing.assert_close(trained, evaluated, rtol=0, atol=0)


def test_a_flow_that_died_of_too_little_energy_has_the_gradient_of_one_that_lived() -> None:
    lattice = make_lattice(0, 0.0).train()
    surface = torch.full((1, DEMO.surface_size), 0.5, dtype=torch.float64)
    surface[0, 7] = DEMO.energy_threshold * 0.5
    surface.requires_grad_()
    out = lattice(surface)
    assert out[0, 7] == 0
    out.sum().backward()
    torch.testing.assert_close(surface.grad, torch.ones_like(surface))


def test_straight_through_keeps_whole_numbers_whole() -> None:
    soft = (torch.rand(1000) * 50).requires_grad_()
    assert torch.equal(straight_through(soft.round(), soft), soft.round())


def test_straight_through_adds_the_gradient_of_the_soft_value() -> None:
    x = torch.tensor([0.4, 2.6], requires_grad=True)
    straight_through(x.round(), 3 * x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [3.0, 3.0]
