"""The figure executed: guidance branch, mask, generation branch, image."""
