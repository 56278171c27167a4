"""Points of a trajectory: the state at a step with its batch, and how points are reached."""
