"""Many requests from a file, made by one engine or a cluster, resumable at any moment.

`jobs` reads and checks the lines, `outputs` knows what is done already, `run` makes the rest. Needs no torch.
"""
