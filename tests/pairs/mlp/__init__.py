"""Classifies small grey images: dense layers with three kinds of rectifier, dropout and smoothed labels."""
