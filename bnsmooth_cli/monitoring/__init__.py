"""Measuring inside a user's own training loop, in PyTorch Lightning and in the Hugging Face Trainer."""
