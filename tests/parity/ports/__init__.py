"""Ports that the suite is tried on."""
