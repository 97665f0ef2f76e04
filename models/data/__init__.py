"""Corpora, tokenizers, teachers and synthetic sentences."""
