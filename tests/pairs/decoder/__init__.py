"""Predicts next tokens: a small decoder with rotary positions, grouped-query attention and gated perceptrons."""
