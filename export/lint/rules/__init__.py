"""The rules of ``coreflow lint``: a file each, which defines ``RULE``; a new one is one new file."""
