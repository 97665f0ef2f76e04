"""Known wrong conversions of coremltools 9.0, a file each under ``rules``, and what finds them in recipes and packages."""
