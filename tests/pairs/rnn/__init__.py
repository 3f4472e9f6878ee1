"""Classifies sequences of unequal lengths: an LSTM, a GRU and the mean over the steps that exist."""
