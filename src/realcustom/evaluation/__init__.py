"""Measuring models: extractors, metrics, benchmarks, the sticker judge and the reports made of them."""
