"""Reads, describes and edits saved programs; the only part of export that other rooms may import."""
