"""Guesses masked tokens: a small encoder whose output embedding is the input's."""
