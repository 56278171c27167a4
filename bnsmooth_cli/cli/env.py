"""`bnsmooth env`: what bnsmooth runs on."""

from __future__ import annotations

from bnsmooth_cli.cli import terminal


def env() -> None:
    """Print versions, the system, its memory and its devices, to be pasted into a bug report.

    [bold]Examples[/]

      bnsmooth env

      bnsmooth env --json
    """
    from bnsmooth_cli.training.environment import environment

    terminal.insist()
    terminal.facts(environment())
