"""Attention maps of the target word to the guidance mask: pure tensors."""
