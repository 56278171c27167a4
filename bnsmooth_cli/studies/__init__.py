"""Studies: a grid of runs, the folder that holds them, where they execute, and what they show."""
