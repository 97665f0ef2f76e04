"""Reports: frozen values, and their renderings."""
