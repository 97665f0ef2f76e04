"""The energy flow: a text autoencoder whose middle carries energies through a lattice."""
