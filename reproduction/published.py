"""What a page already has: the runs of earlier publications, whose folders may be on another machine."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

import bnsmooth_cli as bns
from bnsmooth_cli.config import Config
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.identity import read_settings
from bnsmooth_cli.settings import same_digest
from bnsmooth_cli.storage.runs import Run
from reproduction.scales import Plan

#: The options that two publications of one page have in common.
_SAME = ("scale", "data", "note", "steps")
#: The columns that tell the runs of a study apart.
KEY = ("norm", "lr", "seed")


@dataclass(frozen=True, eq=False)
class Earlier:
    """A run of which only the rows of an earlier page are here.

    Attributes:
        page: The earlier page.
        study: Its study.
        written: Its name in the tables of that page.
        name: The name of the same run among newer ones.
        config: Its configuration.
    """

    page: Published
    study: str
    written: str
    name: str
    config: Config

    @property
    def about(self) -> dict[str, Any]:
        """What the claims need to know about it beside its tables."""
        return dict(self.page.facts["studies"][self.study]["runs"][self.written])

    def rows(self, table: str) -> pd.DataFrame:
        """Its rows in a table of the page, under its new name; none if the page does not have the table."""
        rows = self.page.table(table)
        rows = rows[rows["run"] == self.written]
        return rows if self.name == self.written else rows.assign(run=self.name, settings=self.config.settings_text)


class Published:
    """The tables and `reproduction.json` of an earlier page.

    Args:
        folder: The folder of the page.
        facts: The options of the new publication.

    Raises:
        InputError: If the folder has no page, or one of another scale, other data or other steps.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self._tables = folder / "tables"
        path = folder / "reproduction.json"
        if not path.is_file():
            raise InputError(f"--add: {folder} has no page; publish it without --add first")
        self.facts: dict[str, Any] = json.loads(path.read_text())
        if differing := [name for name in _SAME if self.facts.get(name) != facts[name]]:
            raise InputError(f"--add: the page in {folder} has another {' and another '.join(differing)}")

    @functools.cache  # noqa: B019  a page is read once
    def table(self, name: str) -> pd.DataFrame:
        """A table of the page; an empty one if there is none."""
        return bns.read_table(self._tables / f"{name}.parquet") if self.has(name) else pd.DataFrame({"run": []})

    def has(self, name: str) -> bool:
        """Whether the page has a table of this name."""
        return (self._tables / f"{name}.parquet").is_file()

    def runs(self, plan: Plan, new: Sequence[Run]) -> list[Earlier]:
        """The runs of a study that are not among the new ones.

        Raises:
            InputError: If the study had other settings, or other data.
        """
        if plan.name not in self.facts["studies"]:
            return []
        study = self.facts["studies"][plan.name]
        configs = {key(config): config for grid in plan.grids for config in grid.configs()}
        if new:
            digest = getattr(new[0].config.settings, "data_digest", None)
            configs = {place: config.changed(data_digest=digest) for place, config in configs.items()}
            for name, value in study["settings"].items():
                if name != "problem" and new[0].config.as_dict().get(name, value) != value:
                    raise InputError(f"--add: {plan.name} had {name} {value} on the earlier page")
            for text in self.table(f"{plan.name}.train").get("settings", pd.Series(dtype=str)).unique():
                if not same_digest(read_settings(study["settings"]["problem"], text).get("data_digest"), digest):
                    raise InputError(f"--add: {plan.name} had other data on the earlier page")
        known = {key(run.config) for run in new}
        earlier = []
        for written, about in study["runs"].items():
            place = (about["norm"], about["lr"], about["seed"])
            if place in configs and place not in known:
                name = configs[place].name if new else written
                earlier.append(Earlier(self, plan.name, written, name, configs[place]))
        return earlier

    def norms(self) -> dict[str, Collection[str]]:
        """The norms of its runs, by study."""
        return {
            name: {about["norm"] for about in study["runs"].values()} for name, study in self.facts["studies"].items()
        }


def key(config: Config) -> tuple[str, float, int]:
    """What tells a run of a study apart: the values of KEY."""
    return config.norm, config.lr, config.seed
