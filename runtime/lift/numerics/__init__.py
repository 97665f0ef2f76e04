"""Numerics: the dtype that ops compute in, and the rounding of their results."""
