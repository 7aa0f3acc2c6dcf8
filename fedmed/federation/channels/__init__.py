"""How a round travels: plain (tests), sealed (for the server's eyes), secagg (sums only)."""
