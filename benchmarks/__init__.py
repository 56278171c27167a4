"""How fast bnsmooth is, against plain PyTorch in the same process: `python -m benchmarks [ROW ...]`."""
