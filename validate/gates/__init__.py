"""Gates: measures of error, and the conditions that an output must meet."""
