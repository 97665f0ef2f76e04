"""One file a family of architectures: which of its modules become packages, with which inputs and outputs."""
