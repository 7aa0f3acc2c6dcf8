"""Rounds over Flower: messages, strategies, the round loop."""
