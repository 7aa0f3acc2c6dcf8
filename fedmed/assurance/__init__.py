"""Is the model safe, for whom, and still: figures and papers about a run."""
