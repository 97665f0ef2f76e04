"""The stages of an energy-flow bundle wired together, and what is drawn and checked of them."""
