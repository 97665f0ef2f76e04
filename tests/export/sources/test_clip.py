"""Both encoders of a CLIP folder give the embeddings that transformers gives."""

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf

from coreflow.cli.main import main
from coreflow.export.package.manifest import read_manifest
from coreflow.runtime import load_model


@pytest.mark.slow
def test_texts_and_pictures_are_put_where_transformers_puts_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {**sizes, "vocab_size": 100, "max_position_embeddings": 20, "eos_token_id": 99, "bos_token_id": 98, "pad_token_id": 0}
    config = hf.CLIPConfig(text_config=text, vision_config={**sizes, "image_size": 32, "patch_size": 8}, projection_dim=16)
    model, folder, out = hf.CLIPModel(config).eval(), tmp_path / "clip", tmp_path / "out"
    model.save_pretrained(folder)
    processor = hf.CLIPImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32})
    processor.save_pretrained(folder)
    ids = np.array([[98, 5, 6, 7, 99, 0, 0, 0]], np.int32)
    mask, pixels = (ids > 0).astype(np.int32), np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    with torch.no_grad():
        of_text = model.get_text_features(torch.from_numpy(ids).long(), torch.from_numpy(mask).long()).pooler_output
        of_image = model.get_image_features(**processor(pixels, return_tensors="pt", input_data_format="channels_last")).pooler_output
    assert main(["export", str(folder), "--length", "8", "--out", str(out)]) == 0
    stages = read_manifest(out).stages
    packages = {name: load_model(out / stages[name].package, "lifted") for name in ("text", "image")}
    actual = packages["text"].predict({"input_ids": ids, "attention_mask": mask})["embedding"]
    np.testing.assert_allclose(actual, of_text.numpy(), atol=2e-2)
    actual = packages["image"].predict({"pixel_values": pixels.transpose(2, 0, 1)[None]})["embedding"]
    np.testing.assert_allclose(actual, of_image.numpy(), atol=2e-2)
