"""Models of transformers as they come: tiny configurations of 45 architectures, exported without a wrapper and validated.

``python -m benchmarks.architectures`` prints the table and writes it to benchmarks/results/architectures.json: inputs go by name, the
mask of padding is made by the model's own code, and the output is ``last_hidden_state``. Weights are random and seeded.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.measure import record
from coreflow.export.bundle import build
from coreflow.export.recipe import Recipe
from coreflow.models.errors import CoreflowError
from coreflow.models.spec import TensorSpec
from coreflow.validate import validate

LENGTH, SIDE = 12, 32
LEAST = 36  # that export and pass

BERT: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
LLAMA: dict[str, Any] = {**BERT, "num_key_value_heads": 2, "max_position_embeddings": 64}
VIT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": 8,
}

TEXT: dict[str, dict[str, Any]] = {
    "Bert": BERT,
    "Roberta": BERT,
    "XLMRoberta": BERT,
    "Camembert": BERT,
    "Electra": {**BERT, "embedding_size": 32},
    "Albert": {**BERT, "embedding_size": 16},
    "MPNet": BERT,
    "DistilBert": {"dim": 32, "n_heads": 4, "hidden_dim": 64, "n_layers": 2, "vocab_size": 100},
    "MobileBert": {**BERT, "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32},
    "SqueezeBert": {**BERT, "embedding_size": 32},
    "Ernie": BERT,
    "Deberta": {**BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_position_embeddings": 64},
    "DebertaV2": {**BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "max_position_embeddings": 64},
    "RemBert": {**BERT, "input_embedding_size": 32, "output_embedding_size": 32},
}
CAUSAL: dict[str, dict[str, Any]] = {
    "GPT2": {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64, "vocab_size": 100},
    "GPTNeoX": {**BERT, "max_position_embeddings": 64},
    "Llama": LLAMA,
    "Mistral": LLAMA,
    "Qwen2": LLAMA,
    "Qwen3": {**LLAMA, "head_dim": 8},
    "Gemma": {**LLAMA, "head_dim": 8},
    "Phi": LLAMA,
    "StableLm": LLAMA,
    "Olmo": LLAMA,
    "Granite": LLAMA,
    "Cohere": LLAMA,
}
PIXELS: dict[str, dict[str, Any]] = {
    "ViT": VIT,
    "DeiT": VIT,
    "Beit": VIT,
    "ResNet": {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1]},
    "RegNet": {"embedding_size": 8, "hidden_sizes": [16, 32], "depths": [1, 1], "groups_width": 8},
    "ConvNext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "ConvNextV2": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
    "MobileNetV1": {"image_size": SIDE, "depth_multiplier": 0.25},
    "MobileNetV2": {"image_size": SIDE, "depth_multiplier": 0.25},
    "PoolFormer": {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]},
    "Swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4, "image_size": SIDE, "patch_size": 4},
    "Segformer": {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 2, 2], "decoder_hidden_size": 16},
    "CLIPVision": VIT,
    "SiglipVision": VIT,
    "Pvt": {
        "image_size": 64,
        "hidden_sizes": [8, 16, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 2, 2, 2],
        "num_encoder_blocks": 4,
    },
}


def tiny_model(name: str, sizes: dict[str, Any], attention: str | None = "eager") -> nn.Module:
    """The model ``name`` of transformers at these sizes, with random weights and no tokens of zeros."""
    config = getattr(hf, f"{name}Config")(**sizes)
    if attention is not None and hasattr(config, "_attn_implementation"):
        config._attn_implementation = attention
    model = getattr(hf, f"{name}Model")(config).eval()
    for parameter in model.parameters():
        if not parameter.any():  # tokens that start at zero: a norm of nothing but them shows its epsilon, which fp16 raises
            nn.init.normal_(parameter, std=0.02)
    return model


SPEECH: dict[str, dict[str, Any]] = {
    name: {
        **BERT,
        "conv_dim": (16, 16),
        "conv_stride": (5, 2),
        "conv_kernel": (10, 3),
        "num_feat_extract_layers": 2,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
    }
    for name in ("Wav2Vec2", "Hubert")
}
MAMBA: dict[str, Any] = {"vocab_size": 100, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 1}
WHISPER: dict[str, Any] = {
    "d_model": 32,
    "encoder_layers": 2,
    "encoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "max_source_positions": LENGTH,
}
NAMES = (*TEXT, *CAUSAL, *PIXELS, *SPEECH, "Whisper", "Mamba")


def unmodified_recipe(name: str) -> Recipe:
    """The recipe of an architecture as it comes from transformers, its inputs by their names."""
    torch.manual_seed(0)
    ids = {"input_ids": TensorSpec((1, LENGTH), "int32", (0, 99))}
    mask = {"attention_mask": TensorSpec((1, LENGTH), "int32", values=(0, 1))}
    if name in TEXT:
        inputs, module = ids | mask, tiny_model(name, TEXT[name], None)
    elif name in CAUSAL:
        inputs, module = ids | mask, tiny_model(name, {**CAUSAL[name], "use_cache": False}, None)
    elif name in PIXELS:
        side = PIXELS[name].get("image_size", SIDE)
        inputs, module = {"pixel_values": TensorSpec((1, 3, side, side))}, tiny_model(name, PIXELS[name], None)
    elif name in SPEECH:
        inputs, module = {"input_values": TensorSpec((1, 400))}, tiny_model(name, SPEECH[name], None)
    elif name == "Whisper":
        config = hf.WhisperConfig(**WHISPER)
        inputs = {"input_features": TensorSpec((1, config.num_mel_bins, 2 * LENGTH))}
        module = hf.models.whisper.modeling_whisper.WhisperEncoder(config).eval()
    else:
        inputs, module = ids, hf.MambaModel(hf.MambaConfig(**MAMBA, use_cache=False)).eval()
    return Recipe(name=name, module=module, inputs=inputs, outputs=("last_hidden_state",))


@dataclass(frozen=True, kw_only=True)
class Row:
    """How far an architecture came.

    >>> Row(name="Bert", verdict="pass", seconds=4.2)
    """

    name: str
    verdict: str  # of the report; "refused" where the export gave up
    text: str = ""  # of a verdict that is no pass
    cause: str | None = None
    seconds: float = 0.0  # of the export


def run(name: str) -> Row:
    """Export and validate one architecture."""
    recipe, began = unmodified_recipe(name), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        try:
            package = build(recipe, Path(folder))
        except CoreflowError as error:
            return Row(name=name, verdict="refused", text=str(error), seconds=time.perf_counter() - began)
        seconds = time.perf_counter() - began
        report = validate(package, recipe, backend="lifted", quick=True)
        text = "" if report.verdict == "pass" else report.text
        return Row(name=name, verdict=report.verdict, cause=report.cause, text=text, seconds=seconds)


def main() -> int:
    """Run all architectures, or those named, and write the table; 1 where fewer than ``LEAST`` pass."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="architectures, as in Bert [default: all]")
    names = parser.parse_args().names or NAMES
    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table("architecture", "verdict", "export s", "cause", "text", box=None, pad_edge=False, header_style="dim")
    rows = []
    for name in names:
        rows.append(run(name))
        row = rows[-1]
        console.print(f"{row.name}: {row.verdict} {row.cause or ''} {row.text}", markup=False, soft_wrap=True)
        table.add_row(row.name, row.verdict, f"{row.seconds:.1f}", row.cause or "", row.text[:80])
    passed = sum(row.verdict == "pass" for row in rows)
    console.print(table)
    console.print(f"{passed} of {len(rows)} export and pass")
    if len(rows) == len(NAMES):
        record("architectures", ("torch", "coremltools", "transformers"), passed=passed, least=LEAST, rows=[asdict(row) for row in rows])
    return 0 if passed >= min(LEAST, len(rows)) else 1


if __name__ == "__main__":
    sys.exit(main())
