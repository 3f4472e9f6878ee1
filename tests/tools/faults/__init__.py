"""Planted faults, and the campaign that tries the judge on them: `python -m tests.tools.faults`."""
