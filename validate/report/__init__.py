"""How it is shown: a report as values, and its renderings."""
