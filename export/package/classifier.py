"""Classifiers: programs that end in ``classify``, which makes a label and a dictionary of probabilities, neither of them an array."""

from dataclasses import replace

from coreflow.export.package.graph import Graph, Interface, Op


def without_classifier(graph: Graph, interface: Interface) -> tuple[Graph, Interface, Op | None]:
    """The function up to its ``classify``, whose probabilities take the place of the label and its dictionary; and that op."""
    op = next((op for op in graph.ops if op.type == "classify"), None)
    if op is None:
        return graph, interface, None
    (probabilities,), own = op.argument("probabilities"), {value.name for value in op.outputs}
    values = tuple(value for value in graph.outputs if value.name not in own)
    label = next(feature for feature in interface.outputs if feature.name in own)
    features = tuple(feature for feature in interface.outputs if feature.name not in own)
    if probabilities not in values:
        values, features = (probabilities, *values), (replace(label, name=probabilities.name, kind="array"), *features)
    return replace(graph, ops=tuple(o for o in graph.ops if o is not op), outputs=values), replace(interface, outputs=features), op
