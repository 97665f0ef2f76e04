"""Folders of transformers become bundles by one call, and the packages compute what transformers does."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn

from coreflow.export import ImageSpec, build
from coreflow.export.recipe import Recipe
from coreflow.export.sources.adapters.adapter import Sizes
from coreflow.export.sources.hugging_face import load_checkpoint, write_companions
from coreflow.models.errors import ConfigError
from coreflow.runtime import load_model

BERT: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
LABELS = {0: "cat", 1: "dog", 2: "eel"}


def saved(folder: Path, model: Any) -> Path:
    model.eval().save_pretrained(folder)
    return folder


def recipe_of(folder: Path, task: str | None = None, **sizes: Any) -> Recipe:
    (recipe,) = load_checkpoint(str(folder), task=task, sizes=Sizes(**sizes), target="iOS17")
    return recipe


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return saved(tmp_path_factory.mktemp("bert") / "tiny-bert", hf.BertModel(hf.BertConfig(**BERT)))


def ids_and_mask(length: int, tokens: int) -> dict[str, Any]:
    ids = np.random.default_rng(0).integers(0, 100, (1, length)).astype(np.int32)
    return {"input_ids": ids, "attention_mask": (np.arange(length) < tokens)[None].astype(np.int32)}


def tensors_of(inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array).long() for name, array in inputs.items()}


def test_hidden_states_are_those_of_transformers(bert: Path, tmp_path: Path) -> None:
    recipe, inputs = recipe_of(bert, length=16), ids_and_mask(16, 9)
    assert recipe.name == "tiny_bert" and recipe.inputs["input_ids"].bounds == (0, 99)
    with torch.no_grad():
        reference = hf.BertModel.from_pretrained(bert)(**tensors_of(inputs)).last_hidden_state.numpy()
    actual = load_model(build(recipe, tmp_path), "lifted").predict(inputs)["last_hidden_state"]
    np.testing.assert_allclose(actual[:, :9], reference[:, :9], atol=2e-2)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "mean_sqrt_len"])
def test_a_sentence_is_pooled_as_its_folder_says(bert: Path, tmp_path: Path, pooling: str) -> None:
    folder = tmp_path / "sentences"
    hf.BertModel.from_pretrained(bert).save_pretrained(folder)
    flag = {"cls": "cls_token", "max": "max_tokens", "mean": "mean_tokens", "mean_sqrt_len": "mean_sqrt_len_tokens"}[pooling]
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(f'{{"pooling_mode_{flag}": true, "word_embedding_dimension": 32}}')
    kinds = [("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize")]
    (folder / "modules.json").write_text(
        str([{"type": f"sentence_transformers.models.{k}", "path": p} for k, p in kinds]).replace("'", '"')
    )
    recipe, inputs = recipe_of(folder, length=16), ids_and_mask(16, 9)
    assert recipe.outputs == ("embedding",)
    tensors = tensors_of(inputs)
    with torch.no_grad():
        hidden = hf.BertModel.from_pretrained(bert)(**tensors).last_hidden_state[0, :9]
        pooled = {"mean": hidden.mean(0), "cls": hidden[0], "max": hidden.amax(0), "mean_sqrt_len": hidden.sum(0) / 3}[pooling]
        actual = recipe.module(**tensors)[0]
    torch.testing.assert_close(actual, nn.functional.normalize(pooled, dim=-1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ('[{"type": "a.Pooling", "path": "../elsewhere"}]', "'../elsewhere' leads out of the folder"),
        ('[{"type": "a.Dense", "path": "2_Dense"}]', "has Dense; Transformer, Pooling and Normalize"),
        ('{"type": 1}', "is no list of modules of sentence-transformers"),
    ],
    ids=str,
)
def test_pooling_of_other_forms_is_refused(bert: Path, tmp_path: Path, modules: str, message: str) -> None:
    shutil.copytree(bert, tmp_path / "sentences")
    (tmp_path / "sentences" / "modules.json").write_text(modules)
    with pytest.raises(ConfigError, match=message):
        recipe_of(tmp_path / "sentences")


def test_a_classifier_of_texts_carries_its_labels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = hf.DistilBertConfig(dim=32, n_heads=4, hidden_dim=64, n_layers=1, vocab_size=100, id2label=LABELS, label2id={})
    folder, inputs = saved(tmp_path / "classes", hf.DistilBertForSequenceClassification(config)), ids_and_mask(12, 7)
    recipe = recipe_of(folder, length=12)
    assert recipe.labels == ("cat", "dog", "eel")
    with torch.no_grad():
        logits = hf.DistilBertForSequenceClassification.from_pretrained(folder)(**tensors_of(inputs)).logits
    outputs = load_model(build(recipe, tmp_path), "lifted").predict(inputs)
    assert outputs["classLabel"] == LABELS[int(logits.argmax())]
    np.testing.assert_allclose(list(outputs["classLabel_probs"].values()), logits.softmax(-1)[0].numpy(), atol=5e-3)


def test_a_classifier_of_pictures_takes_them_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = hf.ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        id2label=LABELS,
        label2id={},
    )
    folder = saved(tmp_path / "pictures", hf.ViTForImageClassification(config))
    hf.ViTImageProcessor(size={"height": 32, "width": 32}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.25, 0.3]).save_pretrained(folder)
    recipe = recipe_of(folder)
    spec = recipe.inputs["pixel_values"]
    assert isinstance(spec, ImageSpec) and spec.shape == (1, 3, 32, 32)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    processed = hf.ViTImageProcessor.from_pretrained(folder)(pixels, return_tensors="pt", input_data_format="channels_last")
    with torch.no_grad():
        reference = hf.ViTForImageClassification.from_pretrained(folder)(**processed).logits.softmax(-1)
        actual = recipe.module(torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32)))
    torch.testing.assert_close(actual, reference, atol=1e-5, rtol=1e-4)


def test_tokenizers_and_settings_lie_beside_the_packages(bert: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    write_companions(bert, out)
    assert [file.name for file in out.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": "translation"}, "task 'translation'; a bert can be exported for feature-extraction, sentence-similarity"),
        ({"length": 4096}, "length 4096; tiny-bert takes at most 512 tokens"),
        ({"length": 0}, "length 0; 1 or more is right"),
    ],
    ids=str,
)
def test_what_the_model_does_not_do_is_refused(bert: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        recipe_of(bert, **change)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": "{"}, "config.json is no JSON file"),
        ({"config.json": "[]"}, "holds a list; a JSON object is right"),
        ({"config.json": "{}"}, "model type 'unknown'; these can be exported"),
        ({"config.json": '{"model_type": "rwkv"}'}, "model type 'rwkv'"),
        ({"config.json": '{"model_type": "bert"}'}, "holds no weights; model.safetensors is right"),
        ({"config.json": '{"model_type": "bert"}', "pytorch_model.bin": "x"}, "holds pytorch_model.bin; model.safetensors is right"),
        ({"config.json": '{"model_type": "bert"}', "model.safetensors": "x"}, "transformers cannot load it as AutoModel"),
        ({"config.json": '{"model_type": "bert", "architectures": ["BertForNothing"]}'}, "saved as BertForNothing; choose --task"),
    ],
    ids=str,
)
def test_folders_that_hold_no_model_are_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=message):
        recipe_of(tmp_path)
