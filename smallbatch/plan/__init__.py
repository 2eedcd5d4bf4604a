"""Compute every derived number of a run once, in float64, without JAX."""
