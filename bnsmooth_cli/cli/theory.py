"""`bnsmooth theory`: the paper's theorems, with both sides of every statement measured."""

from __future__ import annotations

from bnsmooth_cli import kinds
from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.measuring import Rows, measuring
from bnsmooth_cli.cli.options import UnitOptions


@measuring(UnitOptions, problem="dln")
def theory(rows: Rows) -> None:
    """Test the theory of section 4 and appendix C, unit by unit in float64 (figure 5).

    These are facts C.1 and C.2, theorems 4.1, 4.2, 4.4 and C.1, observation 4.3 and lemma 4.5. 4.2b is the second part
    of theorem 4.2. 4.2b and theorem C.1 are not proved, and can fail even where the paper's conditions hold.

    The table has one row per measured step, statement, layer and unit, with both sides and the sizes of the reductions.

    Without a run it trains the deep linear network. For convolutions, give --problem vgg.

    Measuring all units of a VGG takes minutes per step. Choose fewer with --at and --units.

    [bold]Examples[/]

      bnsmooth theory

      bnsmooth theory runs/vgg-batch-lr0.1-seed0 --at 0,100,300 --units 0,1,2,3
    """
    cases = rows.groupby("statement", sort=True).agg(
        cases=("lhs", "count"),
        holds=("holds", "mean"),
        largest_residual=("residual", lambda values: values.abs().max()),
        condition_holds=("condition", "mean"),
    )
    terminal.summary("both sides of every statement", cases.astype("float64").reset_index(), note=verdict(rows))
    terminal.summary("sizes of the reductions: medians and frequencies", _reductions(rows))


def verdict(rows: Rows) -> str:
    """A sentence that says in how many cases the proved statements hold."""
    from bnsmooth_cli.measures.theory import TOLERANCE

    proved = rows[rows["statement"].isin(kinds.PROVED)]
    defined = proved["holds"].dropna().astype(bool)
    untested, failed = len(proved) - len(defined), int((~defined).sum())
    proved_names = ", ".join(kinds.PROVED)
    outcome = f"NOT equal in {failed:,} cases, else equal" if failed else "equal"
    text = f"{proved_names}: {outcome} to {TOLERANCE:g} of the largest term in {len(defined) - failed:,} cases"
    reasons = "a constant unit, a gradient or step of zero, an overflow, or 4.5 without its condition"
    return text + (f"; {untested:,} not tested ({reasons})" if untested else "")


def _reductions(rows: Rows) -> Rows:
    """A row per run: the sizes of the terms of 4.1, and how often the conditions of 4.2 are met."""
    first, second, at_y = (rows[rows["statement"] == name] for name in ("4.1", "4.2", "4.1 at y"))
    table = first.groupby("run", sort=False)[["sigma", "mean_fraction", "output_fraction"]].median()
    positive = second[["curvature", "alignment"]].gt(0).where(second["lhs"].notna())
    table["curvature_positive"] = positive["curvature"].groupby(second["run"]).mean()
    table["alignment_positive"] = positive["alignment"].groupby(second["run"]).mean()
    table["holds_at_y"] = at_y.groupby("run")["holds"].mean().astype("float64")
    return table.reset_index()
