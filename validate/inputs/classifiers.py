"""Classifiers, seen as functions of arrays: what is compared are the probabilities, of which the label follows."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from coreflow.export.package.classifier import without_classifier
from coreflow.export.package.graph import Interface, Op, Program
from coreflow.models.spec import TensorSpec
from coreflow.runtime.backend import Model, State


def without_labels(program: Program) -> tuple[Program, Op | None]:
    """``program`` with the probabilities of its default function as its first output, and the ``classify`` that it ended in.

    A cast of the probabilities, which the converter adds for ``classify``, goes too: they are what the module returned. A program
    that is no classifier stays as it is.
    """
    graph, interface, classify = without_classifier(*program.function())
    if classify is None:
        return program, None
    last = next((op for op in graph.ops if op.type == "cast" and op.outputs[0] is graph.outputs[0]), None)
    if last is not None and not any(last.outputs[0] in op.reads() for op in graph.ops):
        (value,) = last.argument("x")
        graph = replace(graph, ops=tuple(op for op in graph.ops if op is not last), outputs=(value, *graph.outputs[1:]))
    value = graph.outputs[0]
    feature = replace(interface.outputs[0], name=value.name, dtype=value.dtype, shape=tuple(extent or 1 for extent in value.shape or ()))
    interface = replace(interface, outputs=(feature, *interface.outputs[1:]), predicted_feature="", predicted_probabilities="")
    return replace(program.with_function(graph), interfaces={**program.interfaces, graph.name: interface}), classify


class ClassifierModel:
    """A classifier of any backend whose probabilities are an array, in the order of the classes; ``name`` is that output's.

    >>> ClassifierModel(model, classify, "probabilities").predict({"image": image})["probabilities"].shape
    (1, 1000)
    """

    def __init__(self, model: Model, classify: Op, interface: Interface) -> None:
        (classes,) = classify.argument("classes")
        self._model, self._classes, self._dictionary = model, classes.data, classify.outputs[1].name
        self._feature = interface.outputs[0]
        self.inputs, self.states, self.backend, self.metadata = model.inputs, model.states, model.backend, model.metadata
        self.outputs: dict[str, TensorSpec] = model.outputs

    def predict(self, inputs: Mapping[str, Any], state: State | None = None) -> dict[str, Any]:
        """One prediction, the probabilities as float32."""
        outputs = dict(self._model.predict(inputs, state))
        by_class = outputs.pop(self._dictionary)
        assert isinstance(self._classes, tuple | list | np.ndarray)  # a list of strings or of whole numbers, as read
        array = np.array([by_class[name] for name in self._classes], np.float32).reshape(self._feature.shape)
        return {self._feature.name: array} | {name: outputs[name] for name in self.outputs if name in outputs}

    def make_state(self) -> State:
        """A fresh state of the model itself."""
        return self._model.make_state()
