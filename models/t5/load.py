"""Reads the decoder of a T5 v1.0 model from a local directory in Hugging Face's format: ``config.json`` and safetensors."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from coreflow.models.errors import BundleError, ConfigError
from coreflow.models.t5.config import T5Config
from coreflow.models.t5.decoder import T5Decoder

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_EMBEDDING, _HEAD, _EMBEDDING_COPY = "shared.weight", "lm_head.weight", "decoder.embed_tokens.weight"
# In the first published checkpoints; cross attention has no position bias and transformers ignores it too.
_LEFT_OVER = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
_LISTED = 8  # names of a kind that an error spells out

_TOP = {
    "embedding": "shared",
    "position_bias": "decoder.block.0.layer.0.SelfAttention.relative_attention_bias",
    "final_norm": "decoder.final_layer_norm",
    "head": "lm_head",
}
_IN_BLOCK = {
    "self_norm": "layer.0.layer_norm",
    "cross_norm": "layer.1.layer_norm",
    "feed_norm": "layer.2.layer_norm",
    "feed_in": "layer.2.DenseReluDense.wi",
    "feed_out": "layer.2.DenseReluDense.wo",
    **{
        f"{ours}.{projection}": f"{theirs}.{projection[0]}"
        for ours, theirs in (("self_attention", "layer.0.SelfAttention"), ("cross_attention", "layer.1.EncDecAttention"))
        for projection in ("query", "key", "value", "output")
    },
}


def load_decoder(directory: str | Path) -> T5Decoder:
    """The decoder stored in ``directory``, in float32 and evaluation mode; the encoder's weights are not read.

    Raises BundleError if a file is missing, damaged or outside the directory, or if the weights are not those that the
    config calls for; the text names all that are missing, unknown, wrongly shaped or not finite.
    """
    directory = Path(directory)
    config = read_config(directory)
    with torch.device("meta"):  # parameters without memory: a random initialisation would be thrown away
        decoder = T5Decoder(config)
    stored = _read_tensors(directory)
    parameters = {_stored_name(ours): (ours, tuple(parameter.shape)) for ours, parameter in decoder.named_parameters()}
    copies = {_EMBEDDING_COPY} if _HEAD in parameters else {_EMBEDDING_COPY, _HEAD}
    if _HEAD in parameters and _HEAD not in stored and _EMBEDDING in stored:
        stored[_HEAD] = stored[_EMBEDDING]  # transformers 5 stores an unscaled head that is the embedding all the same

    problems = _misfits(stored, {name: shape for name, (_, shape) in parameters.items()}, copies)
    if problems:
        raise BundleError(f"{directory}: the weights do not fit config.json; {'; '.join(problems)}")
    decoder.load_state_dict({ours: stored[name].float() for name, (ours, _) in parameters.items()}, assign=True)
    return decoder.requires_grad_(True).eval()


def _misfits(stored: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], copies: set[str]) -> list[str]:
    """A text for every way in which the ``stored`` tensors are not those of ``shapes``; ``copies`` may repeat the embedding."""
    problems = _listed("missing", (name for name in shapes if name not in stored))
    problems += _listed("unknown", (name for name in stored if name not in {*shapes, *copies, _LEFT_OVER}))
    problems += _listed(
        "wrong",
        (
            f"{name} is {_describe(stored[name])} instead of {list(shape)}"
            for name, shape in shapes.items()
            if name in stored and (tuple(stored[name].shape) != shape or not stored[name].is_floating_point())
        ),
    )
    problems += _listed("not finite", (name for name in shapes if name in stored and not stored[name].float().isfinite().all()))
    problems += _listed(
        f"different from {_EMBEDDING}, which it repeats",
        (
            name
            for name in copies
            if {name, _EMBEDDING} <= set(stored) and not torch.equal(stored[name].float(), stored[_EMBEDDING].float())
        ),
    )
    return problems


def read_config(directory: str | Path) -> T5Config:
    """The decoder's dimensions from ``config.json``; BundleError if it is not that of a T5 v1.0 model."""
    path = Path(directory) / "config.json"
    plain = _read_json(path)
    problems = []
    if plain.get("model_type") != "t5":
        problems.append(f"model_type is {plain.get('model_type')!r} instead of 't5'")
    if plain.get("feed_forward_proj", "relu") != "relu":
        problems.append(f"feed_forward_proj is {plain['feed_forward_proj']!r}; only 'relu' (T5 v1.0) is supported")
    pad_id = plain.get("pad_token_id", 0)
    if plain.get("decoder_start_token_id", pad_id) not in (pad_id, None):
        problems.append(f"decoder_start_token_id is {plain['decoder_start_token_id']!r} instead of pad_token_id, {pad_id!r}")
    needed = ("vocab_size", "d_model", "d_kv", "d_ff", "num_heads", "num_layers")
    problems += [f"{name} is missing" for name in needed if name not in plain]
    if problems:
        raise BundleError(f"{path}: {'; '.join(problems)}")
    optional = ("relative_attention_num_buckets", "relative_attention_max_distance")
    layers = plain.get("num_decoder_layers")
    try:
        return T5Config(
            **{name: plain[name] for name in needed if name != "num_layers"},
            **{name: plain[name] for name in optional if name in plain},
            num_layers=plain["num_layers"] if layers is None else layers,
            layer_norm_epsilon=plain.get("layer_norm_epsilon", 1e-6),
            # transformers 5 writes tie_word_embeddings true always and keeps what it meant under the other name
            tie_word_embeddings=plain.get("tie_word_embeddings", True) and plain.get("scale_decoder_outputs", True),
            dropout=plain.get("dropout_rate", 0.1),
            pad_id=pad_id,
            eos_id=plain.get("eos_token_id", 1),
        )
    except ConfigError as error:
        raise BundleError(f"{path}: {error}") from error


def _stored_name(ours: str) -> str:
    """Hugging Face's name of one of our parameters."""
    module, leaf = ours.rsplit(".", 1)
    if not module.startswith("blocks."):
        return f"{_TOP[module]}.{leaf}"
    _, index, inner = module.split(".", 2)
    return f"decoder.block.{index}.{_IN_BLOCK[inner]}.{leaf}"


def _read_tensors(directory: Path) -> dict[str, Tensor]:
    """Every stored tensor but the encoder's, by stored name."""
    tensors: dict[str, Tensor] = {}
    for path, expected in _weight_files(directory).items():
        try:
            with safe_open(path, framework="pt") as file:
                names = set(file.keys())
                absent = sorted(expected - names)
                if absent:
                    raise BundleError(f"{path}: lacks tensors that {_INDEX} places there; {_listed('missing', absent)[0]}")
                tensors |= {name: file.get_tensor(name) for name in sorted(expected or names) if not name.startswith("encoder.")}
        except (SafetensorError, OSError) as error:
            raise BundleError(f"{path}: not a readable safetensors file ({error})") from error
    return tensors


def _weight_files(directory: Path) -> dict[Path, set[str]]:
    """Weight files and the tensors to take from each; an empty set stands for all."""
    if (directory / _SINGLE).is_file():
        return {directory / _SINGLE: set()}
    if not (directory / _INDEX).is_file():
        raise BundleError(f"{directory}: neither {_SINGLE} nor {_INDEX}; pickled weights are not read, save them with safetensors")
    places = _read_json(directory / _INDEX).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise BundleError(f"{directory / _INDEX}: weight_map is not a table of tensor names and files")
    files: dict[Path, set[str]] = {}
    for tensor, name in places.items():
        # A bare name: an index may not lead out of its directory, nor into another.
        if not isinstance(name, str) or name in ("", ".", "..") or set(name) & set("/\\:\0"):
            raise BundleError(f"{directory / _INDEX}: {tensor} is placed in {name!r}, which is not the name of a file beside it")
        files.setdefault(directory / name, set()).add(tensor)
    absent = sorted(path.name for path in files if not path.is_file())
    if absent:
        raise BundleError(f"{directory}: {_listed('missing', absent)[0]}, named by {_INDEX}")
    return files


def _read_json(path: Path) -> dict[str, Any]:
    try:
        plain = json.loads(path.read_bytes())
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise BundleError(f"{path}: not JSON ({error})") from error
    if not isinstance(plain, dict):
        raise BundleError(f"{path}: not a JSON object")
    return plain


def _describe(tensor: Tensor) -> str:
    shape = str(list(tensor.shape))
    return shape if tensor.is_floating_point() else f"{shape} of {str(tensor.dtype).removeprefix('torch.')}"


def _listed(problem: str, names: Iterable[str]) -> list[str]:
    """No text, or one: ``problem`` and the first names."""
    listed = list(names)
    if not listed:
        return []
    more = f" and {len(listed) - _LISTED} more" if len(listed) > _LISTED else ""
    return [f"{problem}: {', '.join(listed[:_LISTED])}{more}"]
