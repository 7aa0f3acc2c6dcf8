"""Secure aggregation: the server learns sums over sites, and nothing of one site."""
