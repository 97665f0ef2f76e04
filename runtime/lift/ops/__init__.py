"""Lowerings: one torch function per MIL op, a file per family of ops."""
