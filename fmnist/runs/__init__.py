"""A training run: its flags, its printed lines, and the files that it can be resumed from."""
