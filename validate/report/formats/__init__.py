"""Formats of reports, one file per format."""
