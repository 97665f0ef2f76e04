"""The engine form of the decoder is the plain form, one position at a time, in arithmetic that fp16 holds."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers.models.t5.modeling_t5 import T5Attention, T5LayerNorm

from coreflow.models.spec import TensorSpec
from coreflow.models.t5.config import T5Config
from coreflow.models.t5.decoder import MASKED, DecoderStep, RMSNorm, T5Decoder, relative_buckets

CONFIG = T5Config(vocab_size=50, d_model=64, d_kv=16, d_ff=128, num_heads=4, num_layers=2, layer_norm_epsilon=1e-4, dropout=0.0)
T, M = 12, 5


@pytest.fixture
def decoder() -> T5Decoder:
    torch.manual_seed(0)
    return T5Decoder(CONFIG).eval()


@pytest.fixture
def memory() -> Tensor:
    return torch.randn(2, M, CONFIG.d_model, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, CONFIG.vocab_size, (2, T), generator=torch.Generator().manual_seed(2))


# --- relative positions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (32, 20), (8, 16), (2, 5), (7, 300)])
def test_buckets_equal_transformers_beyond_the_maximal_distance(buckets: int, max_distance: int) -> None:
    distance = torch.arange(-5, 3 * max_distance)
    theirs = T5Attention._relative_position_bucket(-distance, bidirectional=False, num_buckets=buckets, max_distance=max_distance)
    assert torch.equal(relative_buckets(distance, buckets, max_distance), theirs)


def test_bias_table_row_holds_the_bias_of_its_position_and_masks_the_future(decoder: T5Decoder) -> None:
    table = decoder.bias_table(T).view(T, CONFIG.num_heads, T)
    for query in range(T):
        for key in range(T):
            if key > query:
                assert (table[query, :, key] == MASKED).all()
            else:  # T is below the distances that share buckets
                assert torch.equal(table[query, :, key], decoder.position_bias.weight[query - key])


# --- normalisation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0, 2000.0])
def test_norm_equals_the_mean_square_definition(scale: float) -> None:
    x = torch.randn(7, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) * scale
    ours, theirs = RMSNorm(64, 1e-4).double(), T5LayerNorm(64, 1e-4).double()
    with torch.no_grad():
        ours.weight.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(4))
        theirs.weight.copy_(ours.weight)
    # transformers' own takes the mean of squares in float32
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)


def test_norm_holds_in_fp16_where_squares_do_not() -> None:
    x = torch.linspace(-2000, 2000, 256, dtype=torch.float16).view(4, 64)
    assert x.square().isinf().any()
    actual, reference = RMSNorm(64, 1e-4).half()(x), RMSNorm(64, 1e-4).double()(x.double())
    torch.testing.assert_close(actual.double(), reference, rtol=2e-3, atol=1e-4)


def test_norm_of_zeros_is_zero() -> None:
    assert torch.equal(RMSNorm(64, 1e-4)(torch.zeros(1, 64)), torch.zeros(1, 64))


# --- plain form ---------------------------------------------------------------------------------------------------------


def test_logits_do_not_depend_on_later_tokens(decoder: T5Decoder, tokens: Tensor, memory: Tensor) -> None:
    changed = tokens.clone()
    changed[:, 7:] = (changed[:, 7:] + 1) % CONFIG.vocab_size
    before, after = decoder(tokens, memory), decoder(changed, memory)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.equal(before[:, 7:], after[:, 7:])


def test_every_parameter_receives_a_gradient(tokens: Tensor, memory: Tensor) -> None:
    torch.manual_seed(0)
    trained = T5Decoder(replace(CONFIG, dropout=0.1, tie_word_embeddings=False)).train()
    nn.functional.cross_entropy(trained(tokens, memory).flatten(0, 1), tokens.flatten()).backward()
    assert [name for name, parameter in trained.named_parameters() if parameter.grad is None or not parameter.grad.any()] == []


def test_dropout_acts_in_training_only(tokens: Tensor, memory: Tensor) -> None:
    torch.manual_seed(0)
    dropping = T5Decoder(replace(CONFIG, dropout=0.5))
    assert not torch.equal(dropping.train()(tokens, memory), dropping(tokens, memory))
    assert torch.equal(dropping.eval()(tokens, memory), dropping(tokens, memory))


# --- engine form --------------------------------------------------------------------------------------------------------


def test_steps_equal_the_plain_form(decoder: T5Decoder, tokens: Tensor, memory: Tensor) -> None:
    expected = decoder(tokens, memory)
    own, cross = decoder.empty_cache(T, batch=2), decoder.cross_keys_values(memory)
    for position, row in enumerate(torch.eye(T)):
        logits, own = decoder.step(tokens[:, position : position + 1], row.expand(2, T), own, cross)
        torch.testing.assert_close(logits, expected[:, position], rtol=0, atol=1e-5)


def test_the_previous_content_of_a_cache_slot_does_not_matter(decoder: T5Decoder, tokens: Tensor, memory: Tensor) -> None:
    """It is reused for the next sentence without being cleared."""
    expected = decoder(tokens, memory)
    cross = decoder.cross_keys_values(memory)
    own = tuple((torch.randn_like(key), torch.randn_like(value)) for key, value in decoder.empty_cache(T, batch=2))
    for position, row in enumerate(torch.eye(T)):
        logits, own = decoder.step(tokens[:, position : position + 1], row.expand(2, T), own, cross)
        torch.testing.assert_close(logits, expected[:, position], rtol=0, atol=1e-5)


def test_a_step_writes_its_slot_and_no_other_and_leaves_its_inputs_alone(decoder: T5Decoder, tokens: Tensor, memory: Tensor) -> None:
    cross = decoder.cross_keys_values(memory)
    own = tuple((torch.randn_like(key), torch.randn_like(value)) for key, value in decoder.empty_cache(T, batch=2))
    before = [(key.clone(), value.clone()) for key, value in own]
    _, updated = decoder.step(tokens[:, :1], torch.eye(T)[4:5].expand(2, T), own, cross)
    others = [slot for slot in range(T) if slot != 4]
    for (key, value), (old_key, old_value), (new_key, new_value) in zip(own, before, updated, strict=True):
        assert torch.equal(key, old_key)
        assert torch.equal(value, old_value)
        assert torch.equal(new_key[..., others], old_key[..., others])
        assert torch.equal(new_value[:, :, others], old_value[:, :, others])
        assert not torch.isclose(new_key[..., 4], old_key[..., 4]).all()
        assert not torch.isclose(new_value[:, :, 4], old_value[:, :, 4]).all()


@settings(deadline=None, max_examples=25)
@given(length=st.integers(1, 40), heads=st.integers(1, 3), width=st.integers(1, 9), layers=st.integers(1, 3), seed=st.integers(0, 99))
def test_steps_equal_the_plain_form_for_any_dimensions(
    steps_over: Callable[..., Any], length: int, heads: int, width: int, layers: int, seed: int
) -> None:
    torch.manual_seed(seed)
    config = replace(
        CONFIG,
        d_kv=width,
        num_heads=heads,
        num_layers=layers,
        d_model=11,
        relative_attention_num_buckets=6,
        relative_attention_max_distance=9,
    )
    decoder = T5Decoder(config).eval()
    tokens, memory = torch.randint(0, 50, (1, length)), torch.randn(1, 3, 11)
    step, state = steps_over(decoder, memory, length)
    with torch.no_grad():
        expected = decoder(tokens, memory)[0].numpy()
    for position in range(length):
        logits, state = step(int(tokens[0, position]), position, state)
        np.testing.assert_allclose(logits, expected[position], rtol=0, atol=2e-5)


# --- stages -------------------------------------------------------------------------------------------------------------


def test_stage_inputs_and_outputs_come_in_the_documented_order(decoder: T5Decoder) -> None:
    stage = DecoderStep(decoder, T)
    key, value = TensorSpec((1, 4, 16, T)), TensorSpec((1, 4, T, 16))
    cross_key, cross_value = TensorSpec((1, 4, 16, M)), TensorSpec((1, 4, M, 16))
    assert list(stage.input_specs(M).items()) == [
        ("token", TensorSpec((1, 1), "int32", (0, 49))),
        ("position", TensorSpec((1, T), values=(0, 1))),
        ("self_key_0", key),
        ("self_value_0", value),
        ("self_key_1", key),
        ("self_value_1", value),
        ("cross_key_0", cross_key),
        ("cross_value_0", cross_value),
        ("cross_key_1", cross_key),
        ("cross_value_1", cross_value),
    ]
    assert stage.output_names == ("logits", "self_key_0_out", "self_value_0_out", "self_key_1_out", "self_value_1_out")


def test_stages_equal_the_plain_form(decoder: T5Decoder, tokens: Tensor, memory: Tensor) -> None:
    """Flat tensors through the stages, by their names only."""
    expected = decoder(tokens[:1], memory[:1])
    stage = DecoderStep(decoder, T)
    specs = stage.input_specs(M)
    values = {name: torch.zeros(spec.shape) for name, spec in specs.items()}
    for layer, (key, value) in enumerate(decoder.cross_keys_values(memory[:1])):
        values |= {f"cross_key_{layer}": key, f"cross_value_{layer}": value}
    for position in range(T):
        values |= {"token": tokens[:1, position : position + 1].int(), "position": torch.eye(T)[position : position + 1]}
        assert {name: tuple(value.shape) for name, value in values.items()} == {name: spec.shape for name, spec in specs.items()}
        outputs = dict(zip(stage.output_names, stage(*(values[name] for name in specs)), strict=True))
        torch.testing.assert_close(outputs["logits"], expected[:, position], rtol=0, atol=1e-5)
        values |= {name.removesuffix("_out"): value for name, value in outputs.items() if name != "logits"}


def test_stage_keeps_nothing_but_the_decoder_in_its_weights(decoder: T5Decoder) -> None:
    assert set(DecoderStep(decoder, T).state_dict()) == {f"decoder.{name}" for name in decoder.state_dict()}


@pytest.mark.slow
def test_stages_become_small_fp16_programs_without_transposes_in_the_step(decoder: T5Decoder) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the converter, about versions and machines it was not tried with
        step = program_of(DecoderStep(decoder, T).eval(), DecoderStep(decoder, T).input_specs(M), DecoderStep(decoder, T).output_names)
    assert [output.name for output in step.functions["main"].outputs] == list(DecoderStep(decoder, T).output_names)
    kinds = [operation.op_type for operation in step.functions["main"].operations if operation.op_type != "const"]
    assert len(kinds) <= 105
    assert kinds.count("gather") == 1  # the token's embedding
    assert not {"transpose", "scatter", "slice_update", "cast", "select", "while_loop"} & set(kinds)


def program_of(module: nn.Module, specs: Mapping[str, TensorSpec], outputs: Sequence[str]) -> Any:
    import coremltools as ct

    examples = tuple(
        torch.zeros(spec.shape, dtype=getattr(torch, spec.dtype if spec.dtype == "int32" else "float32")) for spec in specs.values()
    )
    passes = ct.PassPipeline.DEFAULT
    passes.remove_passes({"common::guard_negative_gather_indices", "common::add_int16_cast"})
    with torch.no_grad():
        traced = torch.jit.trace(module, examples, check_trace=False)
    return ct.convert(
        traced,
        inputs=[ct.TensorType(name=name, shape=spec.shape, dtype=getattr(np, spec.dtype)) for name, spec in specs.items()],
        outputs=[ct.TensorType(name=name, dtype=np.float16) for name in outputs],
        convert_to="mlprogram",
        minimum_deployment_target=ct.target.iOS17,
        pass_pipeline=passes,
        skip_model_load=True,
    )._mil_program
