"""Where models are found: their names, folders and hub ids."""
