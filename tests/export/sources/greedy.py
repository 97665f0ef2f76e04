"""Greedy decoding with the functions of a package, as an app would do it."""

from pathlib import Path
from typing import Any

import numpy as np

from coreflow.models.arrays import Array
from coreflow.runtime import load_model


def greedy(package: Path, prompt: list[int], count: int, **memory: Array) -> list[int]:
    """The text that a package goes on with: its two functions, a state or the cache handed on, and what ``memory`` it takes besides."""
    prefill, step = (load_model(package, "lifted", function_name=name) for name in ("prefill", "step"))
    state, further = prefill.make_state() if prefill.states else None, dict(memory)
    if state is None:
        further["past"] = np.zeros(prefill.inputs["past"].shape, np.float16)

    def predict(model: Any, position: int, **inputs: list[int]) -> int:
        arrays = {name: np.array([row], np.int32) for name, row in inputs.items()}
        outputs = model.predict({**arrays, "position": np.array([position], np.int32), **further}, state)
        if state is None:
            further["past"] = outputs["cache"]
        return int(outputs["logits"].argmax())

    size, token = prefill.inputs["input_ids"].shape[1], 0
    for start in range(0, len(prompt), size):
        ids = prompt[start : start + size]
        padding = [0] * (size - len(ids))
        token = predict(prefill, start, input_ids=ids + padding, attention_mask=[1] * len(ids) + padding)
    text = [token]
    while len(text) < count:
        text.append(predict(step, len(prompt) + len(text) - 1, input_ids=text[-1:]))
    return text
