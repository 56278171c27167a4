"""What the measuring commands do alike: find or train the runs, measure, say where the tables are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.options import MachineOptions, RunOptions, StepOptions
from bnsmooth_cli.cli.train import train_or_find
from bnsmooth_cli.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


def measure_sources(
    kind: str,
    paths: list[Path] | None,
    run: RunOptions,
    steps: StepOptions,
    machine: MachineOptions,
    output: Path | None,
    options: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """Measure the paths, or the run that the options describe; the rows of all tables."""
    chosen = steps.chosen()
    if paths and run.described():
        raise InputError(f"{run.described()[0]}: describes a run to train; leave it out, or leave out {paths[0]}")
    machine.apply()
    import pandas as pd

    from bnsmooth_cli.measures import MEASURES, measure
    from bnsmooth_cli.runs import open_source
    from bnsmooth_cli.tables import check_target, read_table

    sources, data = [open_source(path) for path in paths or []], run.data
    if not paths:
        config = run.config()
        MEASURES[kind].plan(config, **(options or {}))  # what cannot be measured is found before it is trained
        if output is not None:
            check_target(output, kind, machine.force)
        # --force is about this command's table: the run beneath it is found, never replaced.
        sources, data = [train_or_find(config, MachineOptions(machine.device)).source()], None
    with terminal.progress(kind) as update:
        written = measure(
            kind,
            sources,
            output,
            **chosen,
            options=options,
            device=machine.device,
            data=data,
            force=machine.force,
            progress=lambda name, step, done, total: update(done, total, f"{name} step {step}"),
        )
    for path in written:
        terminal.say(path)
    return pd.concat([read_table(path, kind) for path in written], ignore_index=True)
