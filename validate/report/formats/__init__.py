"""The formats that a report is written in, a file a format."""
