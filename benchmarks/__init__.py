"""The speed of bnsmooth beside plain PyTorch in the same process: `python -m benchmarks [ROW ...]`."""
