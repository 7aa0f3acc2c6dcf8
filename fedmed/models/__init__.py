"""Networks without batch statistics, safe for per-sample gradients."""
