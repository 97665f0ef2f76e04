"""Parts of training that no family owns: losses, checkpoints, pictures."""
