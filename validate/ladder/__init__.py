"""What runs: the rungs between a torch module and a device."""
