"""What executes a planned program: interpreter, torch module, onnxruntime, or the one that pays."""
