"""The same apps, and the same rounds, on each engine of ``round_overhead.py``."""
