"""Torch operations that coremltools lacks or lowers badly, as MIL operations; one file a family."""
