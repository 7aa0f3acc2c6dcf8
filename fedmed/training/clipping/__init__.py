"""Clipping of each unit's gradient, by the quickest way that is right for the network."""
