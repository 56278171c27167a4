"""The structure of networks: layers, the sites where norms act, and parameters."""
