"""Inputs of a validation: samples, sweeps and states."""
