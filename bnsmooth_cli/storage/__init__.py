"""What is kept in files: tables, runs, checkpoints, exports, and how files are written and read."""
