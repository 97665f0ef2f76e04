"""The lifted backend: a saved program executed op by op with torch, or written as ONNX or source."""
