"""Use eight CPU devices on any machine, and forbid implicit conversions of dtypes and ranks; set before JAX starts."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
from hypothesis import settings

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Use the same examples on every machine, without a time limit.
settings.register_profile("suite", deadline=None, derandomize=True, database=None)
settings.load_profile("suite")
