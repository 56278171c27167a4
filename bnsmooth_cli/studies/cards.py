"""What a prompt and a notebook show of a study."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from bnsmooth_cli.config import from_dict
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.storage.cards import Card, guarded, settings_in_words, shortened
from bnsmooth_cli.storage.files import unicode
from bnsmooth_cli.storage.listing import list_runs, points_in_words

if TYPE_CHECKING:
    from bnsmooth_cli.studies.folder import Study


def card(study: Study) -> Card:
    """The card of a study: its grid, the states of its runs, and the verdicts on the claims."""
    name = unicode(str(study.path))
    return guarded("Study", name, lambda: _card(study, name))


def _card(study: Study, name: str) -> Card:
    config = from_dict({"norm": "none", "lr": 1.0, "seed": 0, **study.read()["settings"]}, name)
    folder = study.path / "runs"
    runs: list[Any] = list_runs(folder).to_dict("records") if folder.is_dir() else []
    states = _counts(str(run["state"]).split()[0].rstrip(":").replace("step", "unfinished") for run in runs)
    whole = [run for run in runs if pd.notna(run["norm"])]  # without those that cannot be read
    lines = {
        "trains": config.problem,
        "grid": f"norms {_listed(whole, 'norm')}; lr {_listed(whole, 'lr')}; seeds {_listed(whole, 'seed')}"
        if whole
        else "",
        "settings": settings_in_words(config),
        "runs": states or "none yet",
        "tables": ", ".join(dict.fromkeys(table for run in runs for table in run["tables"])),
        "failed": ", ".join(study.failed),
        "claims": _verdicts(study),
    }
    rows = [(str(run["run"]), str(run["state"]), points_in_words(run)) for run in runs]
    return Card("Study", name, lines, ("run", "state", "tables"), shortened(rows))


def _verdicts(study: Study) -> str:
    """How many claims got each verdict; empty without the table of the claims."""
    try:
        claims = study.claims
    except InputError as error:
        return "" if not _exists(study.table) else f"cannot be read: {error}"
    return _counts(claims.drop_duplicates(["problem", "claim"])["verdict"])


def _exists(table: Path) -> bool:
    return any(table.parent.glob(f"{table.stem}.claims{table.suffix}"))


def _counts(values: Iterable[str]) -> str:
    """How often each value is there, as in `2 finished, 1 diverged`."""
    return ", ".join(f"{count} {value}" for value, count in pd.Series([*values], dtype="str").value_counts().items())


def _listed(runs: Iterable[Mapping[str, Any]], column: str) -> str:
    """The values of a column, in order of their first appearance; numbers in their own order, and ranges as such."""
    values = [*dict.fromkeys(run[column] for run in runs)]
    if isinstance(values[0], str):
        return ", ".join(values)
    values.sort()
    if len(values) > 2 and values == [*range(int(values[0]), int(values[0]) + len(values))]:
        return f"{values[0]}-{values[-1]}"
    return ", ".join(f"{value:g}" for value in values)
