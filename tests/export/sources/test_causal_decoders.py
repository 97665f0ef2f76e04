"""Decoders with a cache say, token for token, what transformers' own generate says: as inputs and outputs, and as a state."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from coreflow.cli.main import main
from coreflow.export.bundle import build
from coreflow.export.package.manifest import read_manifest
from coreflow.export.package.mlpackage import package_files
from coreflow.export.sources.adapters.adapter import Sizes
from coreflow.export.sources.adapters.cached_decoder import layer_windows
from coreflow.export.sources.hugging_face import load_checkpoint
from coreflow.models.errors import ConfigError
from tests.export.sources.greedy import greedy

TOKENS, LENGTH, PROMPT, COUNT = 120, 96, 8, 64  # prompts of 9 are read in two pieces, of which one is padded
COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": TOKENS,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # so that the texts do not repeat one token
    **{f"{name}_token_id": None for name in ("bos", "eos", "pad")},
}
GROUPED = {**COMMON, "num_key_value_heads": 2}
CAPS = {"query_pre_attn_scalar": 48, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 8.0}
# Seeds with a margin between the first and the second token of MARGIN at least, all along the text: several errors of fp16.
MARGIN = 0.02
MODELS: dict[str, tuple[int, Any, dict[str, Any]]] = {
    "llama": (1, hf.LlamaConfig, GROUPED),
    "gpt2": (23, hf.GPT2Config, COMMON),
    "gpt_neox": (6, hf.GPTNeoXConfig, COMMON),
    "mistral": (2, hf.MistralConfig, {**GROUPED, "sliding_window": 16}),
    "qwen2": (5, hf.Qwen2Config, {**GROUPED, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    "qwen3": (7, hf.Qwen3Config, {**GROUPED, "head_dim": 24}),
    "gemma": (1, hf.GemmaConfig, {**GROUPED, "head_dim": 24}),
    "gemma2": (39, hf.Gemma2Config, {**GROUPED, "head_dim": 24, "sliding_window": 16, **CAPS, "tie_word_embeddings": False}),
}
CASES = [
    pytest.param(name, task, marks=() if (name, task) == ("llama", "text-generation") else pytest.mark.slow)
    for name in MODELS
    for task in ("text-generation", "text-generation-with-state")
]


def saved(folder: Path, name: str) -> tuple[Path, Any]:
    seed, config, fields = MODELS[name]
    torch.manual_seed(seed)
    model = hf.AutoModelForCausalLM.from_config(config(**fields)).eval()
    model.save_pretrained(folder / name)
    return folder / name, model


@pytest.mark.parametrize(("name", "task"), CASES)
def test_the_text_is_that_of_transformers(tmp_path: Path, name: str, task: str) -> None:
    folder, model = saved(tmp_path, name)
    prompt = torch.randint(0, TOKENS, (1, 9), generator=torch.Generator().manual_seed(1))
    generated = model.generate(
        prompt, max_new_tokens=COUNT, do_sample=False, pad_token_id=0, return_dict_in_generate=True, output_scores=True
    )
    first, second = torch.stack(generated.scores)[:, 0].topk(2).values.unbind(1)
    reference = generated.sequences[0, 9:].tolist()
    assert (first - second).min() > MARGIN and len(set(reference)) > 5
    out = tmp_path / "out"
    sizes = ["--length", str(LENGTH), "--prompt", str(PROMPT)]
    assert main(["export", str(folder), "--task", task, *sizes, "--out", str(out)]) == 0
    stages = read_manifest(out).stages
    assert list(stages) == ["prefill", "step"] and all(stage.errors for stage in stages.values())
    assert greedy(out / stages["step"].package, prompt[0].tolist(), COUNT) == reference


@pytest.mark.slow
@pytest.mark.parametrize("task", ["text-generation", "text-generation-with-state"])
def test_two_functions_are_no_larger_than_the_larger_of_them(tmp_path: Path, task: str) -> None:
    config = {**GROUPED, "hidden_size": 320, "intermediate_size": 640, "num_hidden_layers": 4, "num_attention_heads": 5, "vocab_size": 4096}
    model = hf.AutoModelForCausalLM.from_config(hf.LlamaConfig(**{**config, "num_key_value_heads": 1}))
    assert model.num_parameters() > 5e6
    model.save_pretrained(tmp_path / "llama")
    (recipe,) = load_checkpoint(str(tmp_path / "llama"), task=task, sizes=Sizes(length=128))
    parts = {"both": recipe, "prefill": replace(recipe, functions=()), "step": recipe.functions[0]}
    packages = {name: build(part, tmp_path / name, check=False) for name, part in parts.items()}
    sizes = {name: sum(file.stat().st_size for file in package_files(package)) for name, package in packages.items()}
    assert sizes["both"] <= 1.01 * max(sizes["prefill"], sizes["step"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"length": 256}, "length 256; llama takes at most 128 tokens"),
        ({"batch": 2}, "text-generation takes no --batch"),
        ({"length": 16, "prompt": 32}, "prompt 32; the cache holds 16 tokens"),
        ({"prompt": 1}, "prompt 1; 2 or more is right"),
        ({"target": "iOS17"}, "text-generation needs target iOS18, not iOS17"),
        ({"task": "translation"}, "a llama can be exported for text-generation, text-generation-with-state"),
    ],
    ids=str,
)
def test_what_a_decoder_does_not_do_is_refused(llama: Path, change: dict[str, Any], message: str) -> None:
    task, target = change.pop("task", None), change.pop("target", None)
    with pytest.raises(ConfigError, match=message):
        load_checkpoint(str(llama), task=task, sizes=Sizes(**change), target=target)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (hf.GemmaConfig(use_bidirectional_attention=True), "use_bidirectional_attention: a token sees those behind it"),
        (hf.Qwen2Config(num_hidden_layers=1, layer_types=["chunked_attention"]), "layers of chunked_attention; full_attention and"),
        (hf.LlamaConfig(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), "rope_type 'dynamic', whose"),
    ],
    ids=["bidirectional", "kind", "rope"],
)
def test_attention_that_a_cache_does_not_keep_is_refused(config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        layer_windows(config)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("decoders"), "llama")[0]
