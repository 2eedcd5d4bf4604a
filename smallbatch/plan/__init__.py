"""Every derived number of a run, computed once, in float64, without JAX."""
