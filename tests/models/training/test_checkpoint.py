"""Weights on disk."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from coreflow.models.training import checkpoint
from coreflow.models.training.checkpoint import save_tensors


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "some.safetensors"
    save_tensors(path, {"x": torch.ones(3)})
    before = path.read_bytes()

    def write_half(tensors: dict[str, torch.Tensor], target: Path) -> None:
        save_file(tensors, target)
        target.write_bytes(target.read_bytes()[:10])
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", write_half)
    with pytest.raises(OSError, match="no space"):
        save_tensors(path, {"x": torch.zeros(3)})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
