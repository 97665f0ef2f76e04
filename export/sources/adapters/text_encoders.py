"""Text encoders: BERT and its kin, their hidden states, sentence embeddings with the pooling of sentence-transformers, and class scores."""

import json
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from coreflow.export.recipe import Recipe
from coreflow.export.sources.adapters.adapter import Adapter, Checkpoint, read_json
from coreflow.models.errors import ConfigError
from coreflow.models.spec import TensorSpec

TYPES = (  # those that `python -m benchmarks.architectures` exports and validates
    *(
        "bert",
        "distilbert",
        "roberta",
        "xlm-roberta",
        "camembert",
        "electra",
        "albert",
        "mpnet",
        "mobilebert",
        "squeezebert",
        "ernie",
        "rembert",
        "deberta",
        "deberta-v2",
    ),
)
_OFFSET_TYPES = ("roberta", "xlm-roberta", "camembert", "mpnet")  # whose positions begin behind that of the padding token
_POOLINGS = ("mean", "cls", "max", "mean_sqrt_len")
_FLAGS = {  # of sentence-transformers' pooling files
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
}


class SentenceEmbedding(nn.Module):
    """Ids and their mask (B, L) to embeddings (B, H): the hidden states, pooled, and of length one if ``normalises``.

    >>> SentenceEmbedding(bert, "mean", normalises=True)(ids, mask).shape
    torch.Size([1, 384])
    """

    def __init__(self, encoder: nn.Module, pooling: str, *, normalises: bool) -> None:
        super().__init__()
        self.encoder, self.pooling, self.normalises = encoder, pooling, normalises

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L), (B, L) -> (B, H)."""
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        pooled = self._pool(hidden, attention_mask.unsqueeze(-1).to(hidden.dtype))
        return nn.functional.normalize(pooled, dim=-1) if self.normalises else pooled

    def _pool(self, hidden: Tensor, mask: Tensor) -> Tensor:
        if self.pooling == "cls":
            return hidden[:, 0]
        if self.pooling == "max":
            return (hidden - (1 - mask) * 1e4).amax(1)  # not -inf, which fp16 arithmetic turns into NaN
        count = mask.sum(1)
        return (hidden * mask).sum(1) / (count if self.pooling == "mean" else count.sqrt())


class ClassScores(nn.Module):
    """Ids and their mask (B, L) to the probabilities of the classes (B, N).

    >>> ClassScores(classifier)(ids, mask).sum()
    tensor(1.)
    """

    def __init__(self, model: nn.Module, *, independent: bool) -> None:
        super().__init__()
        self.model, self.independent = model, independent

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L), (B, L) -> (B, N)."""
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return torch.sigmoid(logits) if self.independent else torch.softmax(logits, -1)


def hidden_states(checkpoint: Checkpoint) -> Sequence[Recipe]:
    """The encoder itself."""
    return [_recipe(checkpoint, checkpoint.model, "last_hidden_state")]


def sentence_embedding(checkpoint: Checkpoint) -> Sequence[Recipe]:
    """The encoder with the pooling and the normalisation that the folder's ``modules.json`` lists; mean pooling without one."""
    pooling, normalises = _pooling_of(checkpoint)
    return [_recipe(checkpoint, SentenceEmbedding(checkpoint.model, pooling, normalises=normalises), "embedding")]


def class_scores(checkpoint: Checkpoint) -> Sequence[Recipe]:
    """Probabilities with their labels, or of each label by itself where the model says so."""
    config = checkpoint.config
    independent = getattr(config, "problem_type", None) == "multi_label_classification"
    labels = tuple(str(config.id2label[place]) for place in range(config.num_labels))
    recipe = _recipe(checkpoint, ClassScores(checkpoint.model, independent=independent), "probabilities")
    if independent or checkpoint.sizes.batch > 1 or len(set(labels)) < len(labels):
        return [recipe]
    return [Recipe(**{**vars(recipe), "labels": labels})]


def token_logits(checkpoint: Checkpoint) -> Sequence[Recipe]:
    """Logits of every token: of the vocabulary, or of the labels of tokens."""
    return [_recipe(checkpoint, checkpoint.model, "logits")]


def _recipe(checkpoint: Checkpoint, module: nn.Module, output: str) -> Recipe:
    config = checkpoint.config
    most = getattr(config, "max_position_embeddings", None)
    if most is not None and config.model_type in _OFFSET_TYPES:
        most -= (config.pad_token_id or 0) + 1
    shape = (checkpoint.sizes.batch, checkpoint.length(most))
    inputs = {
        "input_ids": TensorSpec(shape, "int32", bounds=(0, config.vocab_size - 1)),
        "attention_mask": TensorSpec(shape, "int32", values=(0, 1)),
    }
    return Recipe(name=checkpoint.name, module=module, inputs=inputs, outputs=(output,), target=checkpoint.target)


def _pooling_of(checkpoint: Checkpoint) -> tuple[str, bool]:
    """Pooling and whether the embedding is normalised; ``ConfigError`` for parts that are neither."""
    file = checkpoint.folder / "modules.json"
    if not file.is_file():
        return "mean", False
    try:
        parts = [(str(part["type"]).rpartition(".")[2], str(part["path"])) for part in json.loads(file.read_text(encoding="utf-8"))]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{file} is no list of modules of sentence-transformers ({error})") from error
    if unknown := [kind for kind, _ in parts if kind not in ("Transformer", "Pooling", "Normalize")]:
        raise ConfigError(f"{file} has {', '.join(unknown)}; Transformer, Pooling and Normalize can be exported")
    folder = next((path for kind, path in parts if kind == "Pooling"), None)
    if folder is not None and not (checkpoint.folder / folder).resolve().is_relative_to(checkpoint.folder.resolve()):
        raise ConfigError(f"{file}: the path {folder!r} leads out of the folder")
    settings = {} if folder is None else read_json(checkpoint.folder / folder / "config.json")
    chosen = [_FLAGS[key] for key, value in settings.items() if value is True and key in _FLAGS] or [
        str(settings.get("pooling_mode", "mean"))
    ]
    if len(chosen) != 1 or chosen[0] not in _POOLINGS:
        raise ConfigError(f"{file}: pooling {' and '.join(chosen)}; one of {', '.join(_POOLINGS)} can be exported")
    return chosen[0], any(kind == "Normalize" for kind, _ in parts)


ADAPTERS = (
    Adapter(
        task="feature-extraction",
        auto_class="AutoModel",
        model_types=TYPES,
        recipes=hidden_states,
        heads=("Model",),
        unused=("pooler.",),
    ),
    Adapter(task="sentence-similarity", auto_class="AutoModel", model_types=TYPES, recipes=sentence_embedding, unused=("pooler.",)),
    Adapter(
        task="text-classification",
        auto_class="AutoModelForSequenceClassification",
        model_types=TYPES,
        recipes=class_scores,
        heads=("ForSequenceClassification",),
    ),
    Adapter(
        task="token-classification",
        auto_class="AutoModelForTokenClassification",
        model_types=TYPES,
        recipes=token_logits,
        heads=("ForTokenClassification",),
    ),
    Adapter(
        task="fill-mask",
        auto_class="AutoModelForMaskedLM",
        model_types=TYPES,
        recipes=token_logits,
        heads=("ForMaskedLM", "ForPreTraining"),
    ),
)
