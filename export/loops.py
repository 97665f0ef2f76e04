"""Loops in a saved program, as warnings to whoever exports a recurrent layer over several steps."""

from collections.abc import Iterator

from coreflow.export.package.graph import Graph


def warn_of_loops(graph: Graph) -> Iterator[str]:
    """A line where the program has loops.

    >>> list(warn_of_loops(graph))
    ['2 loops (while_loop) in the saved program: ...']
    """
    if count := sum(op.type == "while_loop" for op in graph.walk()):
        yield (
            f"{count} loop{'s' * (count > 1)} (while_loop) in the saved program, one of a recurrent layer over several steps each; "
            "a module of one step has none, and its state is an input and an output, or states="
        )
