"""The chain over the saved packages, against the torch modules it was exported from."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from coreflow.export.run import stage_recipes
from coreflow.models.data import grammar
from coreflow.models.energy.chain.pipeline import EnergyResult
from coreflow.models.energy.chain.plot import flow_paths
from coreflow.models.energy.decoding import DecodingOptions, decode
from coreflow.models.energy.stages import energy_stages
from coreflow.models.energy.training.checkpoint import load_checkpoint
from coreflow.models.energy.wiring import Wiring, torch_predict
from coreflow.models.errors import BundleError, InputError
from coreflow.runtime import Chain, load_model

SENTENCES = grammar.sentences(99, 12)


@pytest.fixture(scope="module")
def chain(exported: Path) -> Chain:
    return Chain.load(exported / "bundle", "lifted")


@pytest.fixture(scope="module")
def result(chain: Chain) -> EnergyResult:
    return chain.run(SENTENCES[0])


def test_packages_give_the_tokens_of_the_torch_reference(chain: Chain, exported: Path) -> None:
    checkpoint = load_checkpoint(exported / "run")
    config = checkpoint.model.config
    reference = Wiring(config, torch_predict({stage.name: stage for stage in energy_stages(checkpoint.model)}))
    same = total = 0
    for text in SENTENCES:
        encoded = checkpoint.wordpiece.encode(text, config.text_length)
        carried = reference.carry(reference.encode(encoded.ids[None], encoded.mask[None].astype(np.float32)))
        expected = decode(*reference.decoder(carried.surface), DecodingOptions(max_tokens=config.decode_length)).tokens
        actual = chain.run(text)
        np.testing.assert_allclose(actual.output_surface.ravel(), carried.surface.ravel(), atol=0.02)
        same += sum(a == b for a, b in zip(expected, actual.tokens, strict=False))
        total += max(len(expected), len(actual.tokens))
    assert same / total >= 0.98


def test_every_stage_equals_its_module_on_drawn_inputs(exported: Path, chain: Chain) -> None:
    for recipe in stage_recipes(load_checkpoint(exported / "run").stages()):
        for seed in range(3):
            inputs = recipe.inputs_for(seed)
            with torch.no_grad():
                given = (torch.from_numpy(array) for array in inputs.values())
                result = recipe.module(*(tensor.float() if tensor.is_floating_point() else tensor for tensor in given))
            references = (result,) if isinstance(result, torch.Tensor) else result
            outputs = chain.stages[recipe.name].predict(inputs)
            assert list(outputs) == list(recipe.outputs)
            for name, tensor in zip(recipe.outputs, references, strict=True):
                scale = max(float(tensor.abs().max()), 1e-3)
                np.testing.assert_allclose(outputs[name], tensor.numpy(), atol=0.02 * scale, err_msg=f"{recipe.name}.{name}")


def test_statistics_add_up(result: EnergyResult) -> None:
    flows = result.statistics
    assert flows.steps == len(flows.active) == len(flows.mean_energy)
    assert flows.started + flows.spawned == flows.arrived + flows.died
    assert flows.started == flows.active[0] == 64
    assert 0 < flows.arrived_share <= 1


def test_every_flow_of_the_tables_has_a_path(result: EnergyResult) -> None:
    paths = flow_paths(result)
    assert len(paths) == result.statistics.started + result.statistics.spawned
    for points, energies in paths:
        assert points.shape == (len(energies), 3)
        assert (np.diff(points[:, 2]) >= 1).all()  # a flow advances or dies


def test_a_repeated_sentence_is_decoded_from_the_cache(chain: Chain) -> None:
    first = chain.run("a sentence that no other test decodes")
    again = chain.run("a sentence that no other test decodes")
    assert again.tokens == first.tokens
    assert "decoder_step" in first.times and "decoder_step" not in again.times


def test_options_are_not_mixed_up_in_the_cache(chain: Chain) -> None:
    greedy = chain.run(SENTENCES[2], DecodingOptions(max_tokens=8))
    sampled = chain.run(SENTENCES[2], DecodingOptions(max_tokens=8, method="sample", temperature=5.0, seed=3))
    assert greedy.tokens != sampled.tokens
    assert chain.run(SENTENCES[2], DecodingOptions(max_tokens=8)).tokens == greedy.tokens


def test_correction_never_ends_further_from_the_surface(chain: Chain) -> None:
    plain, corrected = chain.run(SENTENCES[3], corrections=0), chain.run(SENTENCES[3], corrections=3)
    assert plain.cosine is None and corrected.cosine is not None
    if corrected.corrections == 0:
        assert corrected.tokens == plain.tokens


def test_an_embedding_comes_back_as_an_embedding(chain: Chain) -> None:
    vector = np.random.default_rng(0).standard_normal(chain.config.embedding_size)
    back, carried = chain.run_embedding(vector / np.linalg.norm(vector))
    assert back.shape == vector.shape and np.isfinite(back).all()
    assert carried.statistics.started == 64
    with pytest.raises(InputError, match="embedding of shape \\(3,\\)"):
        chain.run_embedding(np.zeros(3))


@pytest.mark.parametrize("text", ["", "  \n\t"])
def test_text_without_a_word_is_refused(chain: Chain, text: str) -> None:
    with pytest.raises(InputError, match="no word"):
        chain.run(text)


def test_long_text_and_unknown_characters_are_counted(chain: Chain) -> None:
    long = chain.run("farmer " * 100)
    assert long.dropped_tokens == 100 + 2 - chain.config.text_length
    assert chain.run("the 漢字 farmer").unknown == ("漢", "字")


def test_inputs_a_stage_cannot_take_are_refused_by_name(chain: Chain) -> None:
    encoder = chain.stages["encoder"]
    good = {"ids": np.zeros((1, 32), np.int32), "mask": np.ones((1, 32), np.float16)}
    for change, message in (
        ({"ids": np.full((1, 32), 10**6, np.int32)}, "'ids' holds 1e\\+06"),
        ({"ids": np.zeros((1, 31), np.int32)}, "'ids': expected shape \\[1, 32\\], got \\[1, 31\\]"),
        ({"ids": np.zeros((1, 32))}, "'ids': expected int32, got float64"),
        ({"mask": np.full((1, 32), np.nan)}, "'mask' holds nan"),
        ({"maks": good["mask"]}, "unexpected 'maks'"),
    ):
        with pytest.raises(InputError, match=message):
            encoder.predict({**good, **change})


def test_a_flipped_byte_is_refused_on_load(bundle: Path) -> None:
    weights = next(bundle.glob("packages/lattice_step.mlpackage/Data/*/weights/weight.bin"))
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 0x10
    weights.write_bytes(data)
    with pytest.raises(BundleError, match=r"lattice_step\.mlpackage.*weight\.bin was changed"):
        Chain.load(bundle)


@pytest.mark.parametrize("pattern", ["*/unigram.json", "*/config.json", "*/weights.safetensors", "*/golden/encoder.safetensors"])
def test_a_missing_companion_is_named(bundle: Path, pattern: str) -> None:
    gone = next((bundle / "companions").glob(pattern))
    gone.unlink()
    with pytest.raises(BundleError, match=f"{gone.name} is missing"):
        Chain.load(bundle)


def test_a_bundle_of_packages_alone_has_no_chain(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps({**manifest, "kind": "recipes"}))
    with pytest.raises(BundleError, match="no chain; load its packages"):
        Chain.load(bundle)


def test_a_bundle_runs_where_it_was_copied_to(exported: Path, tmp_path: Path, result: EnergyResult) -> None:
    elsewhere = shutil.copytree(exported / "bundle", tmp_path / "a folder with spaces" / "naïve")
    assert Chain.load(elsewhere, "lifted").run(SENTENCES[0]).tokens == result.tokens


def test_numerics_are_told_apart(exported: Path, chain: Chain) -> None:
    package = next((exported / "bundle/packages").glob("mapper_in.mlpackage"))
    inputs = {"embedding": np.random.default_rng(1).standard_normal((1, 768)).astype(np.float16)}
    results = {
        numerics: load_model(package, "lifted", numerics=numerics).predict(inputs)["surface"] for numerics in ("fp16", "fp32", "fp64")
    }
    assert results["fp64"].dtype == np.float64
    assert 0 < np.abs(results["fp16"] - results["fp64"]).max() < 1e-2
    assert np.abs(results["fp32"] - results["fp64"]).max() < 1e-5


def test_the_picture_is_a_picture(result: EnergyResult, chain: Chain, tmp_path: Path) -> None:
    chain.plot(result, tmp_path / "flows.png")
    assert (tmp_path / "flows.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(InputError, match=r"a picture ends in \.png"):
        chain.plot(result, tmp_path / "flows.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["flows.png"]


@pytest.mark.coreml
def test_core_ml_gives_the_tokens_of_the_lifted_programs(exported: Path, result: EnergyResult) -> None:
    actual = Chain.load(exported / "bundle", "coreml", compute_units="cpu_only").run(SENTENCES[0])
    np.testing.assert_allclose(actual.output_surface, result.output_surface, atol=0.02)
    same = sum(a == b for a, b in zip(actual.tokens, result.tokens, strict=False))
    assert same >= 0.9 * max(len(actual.tokens), len(result.tokens))
