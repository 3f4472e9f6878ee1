"""The mirror: the same training program as pure functions in JAX."""
