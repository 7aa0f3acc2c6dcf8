"""One file for each command of ``fedmed``."""
