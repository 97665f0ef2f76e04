"""What is known of the Neural Engine without having one: tables with their sources, and Core ML's choice of device. Torch-free."""
