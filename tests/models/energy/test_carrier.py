"""The recurrent network of the flows, against torch's own cell."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from coreflow.models.energy.carrier import EnergyCarrier, GRULayer
from coreflow.models.energy.config import EnergyConfig, find_preset

DEMO = find_preset("demo").config("demo", vocabulary=32, decoder_vocabulary=32)
SIZE_IN, HIDDEN, FLOWS = 7, 5, 11


@pytest.mark.parametrize("seed", range(5))
def test_layer_equals_a_torch_cell_with_the_same_weights(seed: int) -> None:
    torch.manual_seed(seed)
    layer, cell = GRULayer(SIZE_IN, HIDDEN).double(), nn.GRUCell(SIZE_IN, HIDDEN).double()
    gates = 2 * HIDDEN  # the cell's rows are reset, update, candidate
    with torch.no_grad():
        layer.gates.weight.copy_(torch.cat([cell.weight_ih[:gates], cell.weight_hh[:gates]], 1)[:, :, None, None])
        layer.gates.get_parameter("bias").copy_(cell.bias_ih[:gates] + cell.bias_hh[:gates])
        for ours, weight, bias in (
            (layer.candidate_input, cell.weight_ih, cell.bias_ih),
            (layer.candidate_hidden, cell.weight_hh, cell.bias_hh),
        ):
            ours.weight.copy_(weight[gates:, :, None, None])
            ours.get_parameter("bias").copy_(bias[gates:])
        x, hidden = torch.randn(2, SIZE_IN, 1, FLOWS, dtype=torch.float64), torch.randn(2, HIDDEN, 1, FLOWS, dtype=torch.float64)
        expected = cell(x.transpose(1, 3).reshape(-1, SIZE_IN), hidden.transpose(1, 3).reshape(-1, HIDDEN))
        actual = layer(x, hidden).transpose(1, 3).reshape(-1, HIDDEN)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def make_inputs(config: EnergyConfig, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    rand = lambda channels: torch.randn(2, channels, 1, FLOWS, generator=generator)  # noqa: E731
    hidden = tuple(rand(config.carrier_hidden).tanh() for _ in range(config.carrier_layers))
    return rand(config.neuron_output), rand(3).mul(3).round(), rand(1), hidden


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("layers", [1, 3])
def test_an_untrained_carrier_keeps_the_energy_steps_one_cell_along_z_and_spawns_nothing(layers: int, seed: int) -> None:
    torch.manual_seed(seed)
    config = replace(DEMO, carrier_layers=layers)
    features, position, energy, hidden = make_inputs(config, seed)
    with torch.no_grad():
        proposal = EnergyCarrier(config)(features, position, energy, hidden)
    assert (proposal.energy - energy).abs().max() < 0.3
    torch.testing.assert_close(proposal.target.round(), position + torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1))
    assert (proposal.spawn_logit < 0).all()


def test_shares_of_the_children_are_positive_and_leave_some_for_the_parent() -> None:
    torch.manual_seed(0)
    carrier = EnergyCarrier(DEMO)
    nn.init.normal_(carrier.heads.weight, std=1.0)
    with torch.no_grad():
        shares = carrier(*make_inputs(DEMO)).child_shares
    assert shares.shape == (2, DEMO.max_spawn_per_step, 1, FLOWS)
    assert (shares > 0).all()
    assert (shares.sum(1) < 1).all()


def test_there_is_a_state_for_every_layer_and_each_reads_its_own() -> None:
    torch.manual_seed(0)
    config = replace(DEMO, carrier_layers=2)
    carrier = EnergyCarrier(config)
    features, position, energy, hidden = make_inputs(config)
    with torch.no_grad():
        before = carrier(features, position, energy, hidden).hidden
        after = carrier(features, position, energy, (hidden[0], -hidden[1])).hidden
    assert [state.shape for state in before] == [(2, config.carrier_hidden, 1, FLOWS)] * 2
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert (after[1] - before[1]).abs().max() > 0.1
