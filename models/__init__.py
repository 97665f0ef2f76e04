"""Model families, their layers, data and training. No coremltools."""
