"""A saved program as ONNX, and onnxruntime as an engine."""
