"""``coreflow demo``."""


def demo() -> int:
    """The whole chain."""
    return 0
