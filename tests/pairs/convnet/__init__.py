"""Classifies small colour images: strided, depthwise and grouped convolutions, batch normalisation, two poolings."""
