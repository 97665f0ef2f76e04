"""What is computed: model families, their layers, data and training. No coremltools."""
