"""References: a torch module, another package, an ONNX file, recorded outputs."""
