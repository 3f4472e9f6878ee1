"""The same network in the ways that people would pick, beside this repository's: timed in turns."""
