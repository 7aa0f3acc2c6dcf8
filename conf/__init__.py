"""Hydra groups of fedmed; see ``fedmed/configuration``."""
