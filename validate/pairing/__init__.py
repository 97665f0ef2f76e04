"""Pairing: the reference's unrounded weights, in the places that a saved program has for them."""
