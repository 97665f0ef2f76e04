"""Export formats; the only callers of a converter."""
