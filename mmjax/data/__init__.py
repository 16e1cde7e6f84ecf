"""Sources, sampling, packing, loading. NumPy only; JAX is never imported here."""
