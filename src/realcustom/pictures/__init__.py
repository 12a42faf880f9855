"""Pictures: opened as plain RGB, laid over each other, and written as PNG files that can be made again."""
