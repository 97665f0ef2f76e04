"""Engines that execute a planned program: interpreter, torch module, onnxruntime, and an automatic choice."""
