"""Probes: what only a Mac can tell, each check in a child process, in one report with nothing personal in it."""
