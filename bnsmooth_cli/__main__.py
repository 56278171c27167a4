"""`python -m bnsmooth_cli` is `bnsmooth`."""

from bnsmooth_cli.cli import main

main()
