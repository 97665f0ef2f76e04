"""How placements and findings are shown as text."""
