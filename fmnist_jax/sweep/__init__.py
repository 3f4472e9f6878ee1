"""Many models trained at once, on all devices and in several processes."""
