"""Storage: tables, runs, checkpoints and exports, and how files are written and read."""
