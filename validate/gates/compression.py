"""Useless compression: weights that take more bytes compressed than plain, which no comparison of outputs shows."""

from dataclasses import dataclass

from coreflow.export.package.graph import Graph
from coreflow.export.package.summary import stored_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class UselessCompression:
    """Compressed weights that save nothing.

    >>> useless = find_useless_compression(opened.graph)
    >>> useless is None or useless.text
    """

    text: str
    in_vain: bool  # all that is compressed takes no less than it would plain: nothing of what was asked for was done


def describe_compression(graph: Graph) -> str:
    """How weights are compressed, ``lut_to_dense (4 bits)``; empty where none are."""
    return ", ".join(sorted({weight.compression for weight in stored_weights(graph) if weight.compression}))


def find_useless_compression(graph: Graph) -> UselessCompression | None:
    """The weights that a compression made larger, as pruning does that prunes nothing; None where there are none."""
    compressed = [weight for weight in stored_weights(graph) if weight.compression]
    useless = [weight for weight in compressed if weight.saves_nothing]
    if not useless:
        return None
    largest = max(useless, key=lambda weight: weight.stored_bytes)
    others = f" (and {len(useless) - 1} more weights)" if len(useless) > 1 else ""
    comparable = [weight for weight in compressed if weight.plain_bytes]
    hint = "; Core ML Tools under numpy 2 prunes nothing of large weights, prune under numpy 1" if "sparse" in largest.compression else ""
    return UselessCompression(
        text=f"{largest.name} is compressed ({largest.compression}) and takes {largest.stored_bytes / 1e3:.1f} kB, "
        f"uncompressed {largest.plain_bytes / 1e3:.1f}{others}: the compression saves nothing{hint}",
        in_vain=sum(weight.stored_bytes for weight in comparable) >= sum(weight.plain_bytes for weight in comparable),
    )
