"""The stages of an energy-flow bundle wired together: for use, for golden samples, for validation, and as a picture."""
