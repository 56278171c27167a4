"""What a layer is, and where norms act: found by running a module."""
