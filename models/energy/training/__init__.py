"""Training and checkpoints of the energy flow."""
