"""The only callers of a converter."""
