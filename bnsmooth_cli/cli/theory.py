"""`bnsmooth theory`: the paper's theorems, both sides measured."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.measuring import measure_sources
from bnsmooth_cli.cli.options import (
    ExportOptions,
    MachineOptions,
    RunOptions,
    Sources,
    StepOptions,
    TableOutput,
    UnitOptions,
    WeightOptions,
    grouped,
)

if TYPE_CHECKING:
    import pandas as pd


@grouped
def theory(
    steps: StepOptions,
    units: UnitOptions,
    run: RunOptions,
    weights: WeightOptions,
    machine: MachineOptions,
    export: ExportOptions,
    sources: Sources = None,
    output: TableOutput = None,
) -> None:
    """Verify theorems 4.1, 4.2, 4.4, observation 4.3 and lemma 4.5, unit by unit in float64 (section 4, figure 5).

    One row a measured step, statement, layer and unit: both sides, and what the reductions amount to.

    Without a run it takes the deep linear network; for convolutions, --problem vgg.

    All units of a VGG take about a minute a step: choose some with --at and --units.

    [bold]Examples[/]

      bnsmooth theory

      bnsmooth theory runs/vgg-batch-lr0.1-seed0 --at 0,100,300 --units 0,1,2,3
    """
    if not sources and run.problem is None:
        run = dataclasses.replace(run, problem="dln")
    rows = measure_sources("theory", sources, run, steps, machine, weights, export, output, units.chosen())
    cases = rows.groupby("statement", sort=True).agg(
        cases=("lhs", "count"),
        holds=("holds", "mean"),
        largest_residual=("residual", lambda values: values.abs().max()),
        condition_holds=("condition", "mean"),
    )
    terminal.summary(
        "both sides of every statement",
        cases.astype("float64").reset_index(),
        ["statement", *cases.columns],
        _verdict(rows),
    )
    table = _reductions(rows)
    terminal.summary("what they amount to: medians and frequencies", table, [str(name) for name in table])


def _verdict(rows: pd.DataFrame) -> str:
    from bnsmooth_cli.measures.theory import PROVED, TOLERANCE

    proved = rows[rows["statement"].isin(PROVED)]
    defined = proved["holds"].dropna()
    undefined = len(proved) - len(defined)
    failed = int((~defined.astype(bool)).sum())
    found = "equal" if not failed else f"NOT equal in {failed:,} cases, else"
    text = f"{', '.join(PROVED)}: {found} to {TOLERANCE:g} of the largest term in {len(defined) - failed:,} cases"
    return text + (f"; {undefined:,} undefined (a constant unit, or an overflow)" if undefined else "")


def _reductions(rows: pd.DataFrame) -> pd.DataFrame:
    """A row a run: how large the terms of 4.1 are, and how often what 4.2 needs is so."""
    first, second, at_y = (rows[rows["statement"] == name] for name in ("4.1", "4.2", "4.1 at y"))
    table = first.groupby("run", sort=False)[["sigma", "mean_fraction", "output_fraction"]].median()
    positive = second[["curvature", "alignment"]].gt(0).where(second["lhs"].notna())
    table["curvature_positive"] = positive["curvature"].groupby(second["run"]).mean()
    table["alignment_positive"] = positive["alignment"].groupby(second["run"]).mean()
    table["holds_at_y"] = at_y.groupby("run")["holds"].mean().astype("float64")
    return table.reset_index()
