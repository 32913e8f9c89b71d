"""Pages and tables of the numbers that runs have left."""
