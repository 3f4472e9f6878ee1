"""Witnesses of one interface: the reference in torch, the mirror in JAX, and an oracle in NumPy float64."""
