"""The same engine on many machines, with Ray. Ray is imported on use."""
