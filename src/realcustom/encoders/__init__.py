"""Inputs to tokens: words to token positions, reference images to features."""
