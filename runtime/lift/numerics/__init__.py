"""Arithmetic after each op: what is rounded, and when."""
