"""Run the command line: `python -m bnsmooth_cli` is the same as `bnsmooth`."""

from bnsmooth_cli.cli import main

main()
