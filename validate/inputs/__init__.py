"""On what: samples, sweeps and states."""
