"""The T5 v1.0 decoder."""
