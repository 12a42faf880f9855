"""Request -> result: the one room behind every door."""
