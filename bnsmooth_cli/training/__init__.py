"""The trajectory of a run, its optimiser, and the training that records it."""
