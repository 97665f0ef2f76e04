"""Rules of the engine, a close family a file: every module here or below gives ``RULES``."""
