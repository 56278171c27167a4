"""What the measuring commands do alike: find or train the runs, measure, say where the tables are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.options import ExportOptions, MachineOptions, RunOptions, StepOptions, WeightOptions
from bnsmooth_cli.cli.train import train_or_find
from bnsmooth_cli.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    from bnsmooth_cli.storage.runs import CheckpointSource


def measure_sources(
    kind: str,
    paths: list[Path] | None,
    run: RunOptions,
    steps: StepOptions,
    machine: MachineOptions,
    weights: WeightOptions,
    export: ExportOptions,
    output: Path | None,
    options: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """Measure the paths, or the weights or the run that the options describe; the rows of all tables."""
    chosen = steps.chosen()
    if paths and run.described():
        raise InputError(f"{run.described()[0]}: describes a run to train; leave it out, or leave out {paths[0]}")
    if paths and weights.weights is not None:
        raise InputError(f"--weights {weights.weights}: goes with a problem; leave it out, or leave out {paths[0]}")
    machine.apply()
    export.check()
    import pandas as pd

    from bnsmooth_cli.measures.measuring import measure
    from bnsmooth_cli.storage.tables import read_table

    options = options or {}
    sources = _sources(kind, paths or [], run, machine, weights.weights, output, options)
    with terminal.progress(kind) as update:
        written = measure(
            kind,
            sources,
            output,
            **chosen,
            options=options,
            device=machine.device,
            data=run.data if paths else None,
            force=machine.force,
            progress=lambda name, step, done, total: update(done, total, f"{name} step {step}"),
        )
    for path in written:
        terminal.say(path)
        if (scalars := export.write(path)) is not None:
            terminal.say(scalars)
    return pd.concat([read_table(path, kind) for path in written], ignore_index=True)


def _sources(
    kind: str,
    paths: list[Path],
    run: RunOptions,
    machine: MachineOptions,
    weights: Path | None,
    output: Path | None,
    options: dict[str, Any],
) -> list[CheckpointSource]:
    from bnsmooth_cli.measures.measuring import measurement
    from bnsmooth_cli.storage.runs import open_source, open_weights
    from bnsmooth_cli.storage.tables import check_target

    if paths:
        sources = [open_source(path) for path in paths]
        for source in sources:
            run.check_code(source.config, source.path)
        return sources
    config = run.config()
    if weights is not None:
        return [open_weights(weights, config)]
    measurement(kind).plan(config, **options)  # what cannot be measured is found before it is trained
    if output is not None:
        check_target(output, kind, machine.force)
    # --force is about this command's table: the run beneath it is found, never replaced.
    return [train_or_find(config, MachineOptions(machine.device)).source()]
