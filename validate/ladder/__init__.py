"""The ladder: the rungs between a torch module and a device."""
