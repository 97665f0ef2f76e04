"""The checks, a file each; each has one value ``CHECK``."""
