"""Doubles the resolution of images: a small U-net on top of bilinear interpolation."""
