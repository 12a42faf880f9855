"""The embedded default model: stock classes at small sizes, and its shipped weights."""
