"""Training: one loop for autoencoder, base, adapter and the real backbones; recipes are small Python files."""
