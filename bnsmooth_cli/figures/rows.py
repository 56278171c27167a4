"""The rows that a figure shows: selected by the user, told apart by their settings, and each of them once."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pandas as pd

from bnsmooth_cli import kinds
from bnsmooth_cli.config import defining, resolve
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.figures.style import APART, lr_text, lrs_of
from bnsmooth_cli.identity import alike, differing, read_settings
from bnsmooth_cli.presets import PROBLEMS
from bnsmooth_cli.settings import words

#: The largest number of groups of settings of a problem that a figure draws apart.
MAX_APART: Final = 6
#: What identifies a row of a run, as far as its kind has these columns.
_KEYS: Final = ("step", "alpha", "layer", "unit", "statement", "affine", "x", "y", "path_step", "vector", "rank")
_TOLERANCE: Final = 1e-3  # of a value that was computed twice, as on machines with other numbers of threads
#: The settings that titles always have.
_TITLED: Final = ("data", "width", "steps")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """The rows to draw.

    Attributes:
        layers: Layers by name or number; None for those that the figure chooses.
        units: Units by number; None likewise.
        steps: The first and the last step; None for all.
    """

    layers: Sequence[str | int] | None = None
    units: Sequence[int] | None = None
    steps: tuple[int, int] | None = None

    def of(self, kind: str, table: pd.DataFrame) -> pd.DataFrame:
        """The selected rows of a table.

        Args:
            kind: The kind of table, for the error.
            table: Its rows.

        Raises:
            InputError: If tables of this kind have no such column, or the table lacks what is selected.
        """
        if self.layers is not None:
            _check_column("--layers", "layer", kind, table)
            table = table[self._layers(table)]
        if self.units is not None:
            _check_column("--units", "unit", kind, table)
            _check_there("--units", self.units, table["unit"].unique())
            table = table[table["unit"].isin([int(unit) for unit in self.units])]
        if self.steps is not None:
            _check_column("--steps", "step", kind, table)
            first, last = self.steps
            if (inside := table[table["step"].between(first, last)]).empty:
                there = f"{table['step'].min():,} to {table['step'].max():,}"
                raise InputError(f"--steps {first}-{last}: the {kind} table has no such step, but steps {there}")
            table = inside
        return table

    def of_steps(self, kind: str, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of the selected steps alone."""
        return replace(self, layers=None, units=None).of(kind, table)

    def names(self) -> frozenset[str]:
        """Which of layers and units the user has selected, so that figures show all of them."""
        return frozenset(name for name in kinds.SELECTING if getattr(self, name) is not None)

    def _layers(self, table: pd.DataFrame) -> pd.Series[bool]:
        names, numbers = table["layer_name"].astype(str), table["layer"].astype(str)
        wanted = [str(layer) for layer in self.layers or ()]
        lacking = [layer for layer in wanted if not (names.eq(layer) | numbers.eq(layer)).any()]
        if lacking:
            known = table.drop_duplicates("layer").sort_values("layer")
            there = ", ".join(f"{row.layer} ({row.layer_name})" for row in known.itertuples())
            raise InputError(f"--layers {','.join(lacking)[:60]}: the table has the layers {there}")
        numbered = [layer for layer in wanted if not names.eq(layer).any()]  # a name may be a number
        return names.isin(wanted) | numbers.isin(numbered)


def _check_column(flag: str, column: str, kind: str, table: pd.DataFrame) -> None:
    if column not in table:
        having = [entry.name for entry in kinds.KINDS if entry.figures and column in entry.columns]
        raise InputError(f"{flag}: {kind} tables have no {column}s; those that have them: {', '.join(having)}")


def _check_there(flag: str, wanted: Sequence[int], there: Iterable[int]) -> None:
    known = sorted(int(unit) for unit in there)
    if lacking := [str(unit) for unit in wanted if unit not in known]:
        raise InputError(f"{flag} {','.join(lacking)[:60]}: the table has {', '.join(map(str, known))}")


def prepare(kind: str, table: pd.DataFrame, beside: pd.DataFrame | None = None) -> pd.DataFrame:
    """The rows of a table with overflows as infinity, and each row of a run once.

    The column `style.APART` says in words what differs between the settings of the problem's runs. Runs of equal
    settings, norm, learning rate and seed are one run.

    Args:
        kind: The kind of table.
        table: Rows of one problem.
        beside: Rows of the same problem whose settings are told apart by the same words.

    Raises:
        InputError: If there are too many different settings, or if two tables disagree about a run.
    """
    problem = str(table["problem"].iloc[0])
    columns = kinds.get(kind).columns
    measured = [
        name for name, column in columns.items() if name in table and not column.nullable and column.type == "double"
    ]
    table = table.copy()
    overflowing = [name for name in measured if name != "lr"]
    table[overflowing] = table[overflowing].fillna(np.inf)
    texts = _settings(table)
    every = dict.fromkeys([*texts, *([] if beside is None else _settings(beside))])
    same, said = alike(problem, every), differing(problem, every)
    if len(groups := dict.fromkeys(said.values())) > MAX_APART:
        raise InputError(
            f"the runs of {problem} have {len(groups)} different settings, and a figure shows at most {MAX_APART}; "
            f"plot fewer at a time ({'; '.join(groups)[:300]})"
        )
    table[APART] = pd.Categorical(texts.map(said), categories=list(groups))
    table["settings"] = texts.map(same)
    return _once(kind, _named(table))


def _settings(table: pd.DataFrame) -> pd.Series[str]:
    if "settings" not in table:
        return pd.Series("", index=table.index)
    return table["settings"].astype(object).fillna("").astype(str)


def of_the_same_runs(rows: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """Those of some prepared rows that are of the runs of a prepared table."""
    key = ["norm", "lr", "seed", APART]
    known = pd.MultiIndex.from_frame(rows[key]).isin(pd.MultiIndex.from_frame(table[key]))
    return rows[known & ((rows["settings"] != "") | rows["run"].isin(table["run"]))]


def _named(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with one name for each run: that of its first rows, with what differs where runs share a name."""
    table = table.assign(source=table["run"])
    known = table["settings"] != ""
    key = ["settings", "norm", "lr", "seed"]
    first = table.groupby(key, sort=False, observed=True)["run"].transform("first")
    table["run"] = first.where(known, table["run"])
    runs = table.drop_duplicates(["run", *key])
    shared = runs.duplicated("run", keep=False)
    if shared.any():
        names = runs[shared].set_index(["run", *key]).index
        of_row = pd.MultiIndex.from_frame(table[["run", *key]])
        details = table["norm"] + ", lr " + table["lr"].map("{:g}".format) + ", seed " + table["seed"].astype(str)
        longer = table["run"] + " (" + details + ", " + table[APART].astype(str) + ")"
        table["run"] = longer.where(of_row.isin(names), table["run"])
    return table


def _once(kind: str, table: pd.DataFrame) -> pd.DataFrame:
    """Each row once, as a table may be given twice."""
    keys = ["run", *(name for name in _KEYS if name in table)]
    twice = table.duplicated(keys, keep=False)
    if not twice.any():
        return table.drop(columns="source")
    rows = table[twice]
    values = [
        str(name) for name in rows.select_dtypes("float") if name not in (*keys, "lr") and "ratio_" not in str(name)
    ]
    grouped = rows.groupby(keys, dropna=False, sort=False, observed=True)
    low, high = (grouped[values].transform(how) for how in ("min", "max"))
    with np.errstate(invalid="ignore"):
        apart = (high - low) > _TOLERANCE * np.maximum(low.abs(), high.abs()) + 1e-6 * rows[values].abs().replace(
            np.inf, np.nan
        ).max()
    if apart.to_numpy().any():
        place = np.argwhere(apart.to_numpy())[0]
        row, column = rows.iloc[place[0]], values[place[1]]
        _refuse(kind, rows[(rows[keys] == row[keys]).fillna(False)["run"]], row, column)
    return pd.concat([table[~twice], grouped.last().reset_index()[[*table]]]).drop(columns="source")


def _refuse(kind: str, rows: pd.DataFrame, row: pd.Series[Any], column: str) -> None:
    names = list(dict.fromkeys(rows["source"]))
    at = f" at step {row['step']:,}" if "step" in row else ""
    if len(names) > 1:
        those = f"{' and '.join(names[:2])} are runs of the same settings, norm, learning rate and seed"
        raise InputError(f"{those}, but their {kind} tables differ ({column}{at}); plot one of them")
    raise InputError(
        f"two {kind} tables of the run {names[0]} differ ({column}{at}), as with different options; plot one of them"
    )


def title(table: pd.DataFrame) -> str:
    """What the rows of one problem have in common: the problem, its settings, the learning rate and the seeds."""
    problem = str(table["problem"].iloc[0])
    lrs = lrs_of(table)
    parts = [problem, *_common(problem, [text for text in _settings(table).unique() if text])]
    parts += [lr_text(lr) for lr in lrs if len(lrs) == 1]
    return ", ".join([*parts, *_seeds(table)])


def _seeds(table: pd.DataFrame) -> list[str]:
    """The number of seeds of each norm, learning rate and group of settings, unless it is one."""
    counts = table.groupby(["norm", "lr", APART], observed=True)["seed"].nunique()
    fewest, most = int(counts.min()), int(counts.max())
    return [f"{most} seeds" if fewest == most else f"{fewest} to {most} seeds"] if most > 1 else []


def _common(problem: str, texts: Collection[str]) -> list[str]:
    """The settings that all texts share, in words: data, width and steps, and what differs from the nearest preset."""
    if not texts:
        return []
    read = [read_settings(problem, text) for text in texts]
    values = {name: value for name, value in read[0].items() if all(other.get(name) == value for other in read)}
    known = defining(problem)
    preset, usual = _nearest(problem, values)
    unusual = {name for name, value in values.items() if name in known and name in usual and value != usual[name]}
    if values.get("batch_size") == values.get("samples"):
        unusual.discard("batch_size")  # the full batch
    shown = [name for name in (*_TITLED, *(unusual - {*_TITLED})) if name in values]
    order = {name: place for place, name in enumerate((*_TITLED, *known))}
    texts = [words(known[name], values[name]) for name in sorted(shown, key=order.__getitem__)]
    return [*([f"{preset} preset"] if preset not in ("", "quick") else []), *texts]


def _nearest(problem: str, values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The preset that most of the values are of, and its values; none for a custom problem."""
    presets = {}
    for name in PROBLEMS[problem].presets if problem in PROBLEMS else ():
        presets[name] = read_settings(problem, resolve(problem, preset=name).settings_text)
    apart = {name: sum(usual.get(key) != value for key, value in values.items()) for name, usual in presets.items()}
    nearest = min(apart, key=apart.__getitem__, default="")
    return nearest, presets.get(nearest, {})
