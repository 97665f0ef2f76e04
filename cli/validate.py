"""``coreflow validate``."""


def validate() -> int:
    """Judge."""
    return 0
