"""Saved programs read, described and edited; all of export that other rooms may import."""
