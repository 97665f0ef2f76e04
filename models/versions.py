"""Versions of coreflow and of the libraries it stands on."""

from importlib import metadata

from coreflow import __version__


def version(library: str) -> str:
    """The version of an installed library; ``"coreflow"`` is this one, whose distribution has a longer name."""
    return __version__ if library == "coreflow" else metadata.version(library)
