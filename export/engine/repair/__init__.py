"""Repair for the Neural Engine: passes over a saved program that keep its function and its interface, one a file."""
