"""Replays: the worst sample of a failed validation, recorded and run alone."""
