"""How placements and findings are shown: as text, and on a map."""
