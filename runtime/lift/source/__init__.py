"""A saved program as Python source."""
