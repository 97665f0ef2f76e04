"""A model of your own, ready for `coreflow export examples/recipes.py:CLASSIFIER --out artifacts/example`.

Anything that is an ``nn.Module`` with fixed input shapes goes the same way. Trained weights are loaded before the recipe is
made; here a seed stands in for them.
"""

import torch
from torch import Tensor, nn

from coreflow.export import Recipe, TensorSpec

VOCABULARY, LENGTH, CLASSES = 1000, 64, 8


class TextClassifier(nn.Module):
    """Token ids (1, 64) and mask (1, 64) -> scores (1, 8): embeddings, a gated 1-D convolution, a masked mean, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, 64)
        self.mix = nn.Conv1d(64, 128, kernel_size=5, padding=2)
        self.head = nn.Sequential(nn.LayerNorm(64, eps=1e-4), nn.Linear(64, CLASSES))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Scores before the softmax."""
        values, gates = self.mix(self.tokens(ids).transpose(1, 2)).chunk(2, dim=1)
        weights = mask / mask.sum(1, keepdim=True).clamp(min=1)
        return self.head((values * gates.sigmoid() * weights.unsqueeze(1)).sum(2))


torch.manual_seed(0)
CLASSIFIER = Recipe(
    name="classifier",
    module=TextClassifier(),
    inputs={"ids": TensorSpec((1, LENGTH), "int32", bounds=(0, VOCABULARY - 1)), "mask": TensorSpec((1, LENGTH), values=(0, 1))},
    outputs=("scores",),
    description="Scores of eight classes for a text of up to 64 tokens",
)
