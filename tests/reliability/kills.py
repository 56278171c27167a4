"""Trials of kills: a command is killed at random moments; its files have to be complete, and the command to finish."""

from __future__ import annotations

import json
import random
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import torch
from attempts import DLN, MEASURE, OTHER, RECIPE, STUDY, TRAINED, VGG, Attempt, Try, contents, prepared, run
from PIL import Image

from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.journal import Journal


@dataclass(frozen=True)
class Kill:
    """A trial: each try kills the command one to three times at random moments, and then lets it finish."""

    line: str
    before: tuple[str, ...] = ()

    def prepare(self, folder: Path) -> Attempt:
        base, length, expected = prepared(folder, self.before, self.line)

        def attempt(number: int) -> Try:
            chance = random.Random(number)
            here = folder / f"kill-{number}"
            shutil.copytree(base, here)
            moments = [chance.uniform(0, length) for _ in range(chance.randint(1, 3))]
            killed, kept = 0, dict[str, int]()
            for moment in moments:
                killed += run(self.line, here, signals=[(moment, signal.SIGKILL)]).code == -9
                now = points(here)
                lost = [name for name, count in kept.items() if now.get(name, 0) < count and not finished(here, name)]
                if fault := unreadable(here) or (f"points lost: {lost}" if lost else ""):
                    return Try(f"{moments}", "", fault, 0.0, 0)
                kept = now
            last = run(self.line, here)
            fault = ""
            if last.code:
                fault = f"does not finish: {last.err}"
            elif (found := contents(here)) != expected:
                fault = f"other files: {sorted(k for k in {*found, *expected} if found.get(k) != expected.get(k))}"
            if not fault:
                shutil.rmtree(here)
            return Try(f"killed {killed} times, at {moments}", "same result", fault, last.seconds, 0)

        return attempt


def unreadable(folder: Path) -> str:
    """The first file that is not complete, with its error; temporary files do not count."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or ".tmp." in path.name:
            continue
        try:
            if path.suffix == ".parquet":
                tables.read_table(path)
            elif path.suffix == ".pt":
                torch.load(path, weights_only=True)
            elif path.suffix == ".json" and ".progress" not in path.parts:
                json.loads(path.read_text())
            elif path.suffix == ".png":
                Image.open(path).load()
            elif path.suffix in (".html", ".md", ".csv"):
                assert path.read_text().endswith(("</html>\n", "\n")), "cut short"
        except Exception as error:  # whatever it is, the file is not complete
            return f"{path.relative_to(folder)}: {type(error).__name__}: {error}"
    return ""


def points(folder: Path) -> dict[str, int]:
    """The number of points in each journal."""
    found = {}
    for path in sorted(path for path in folder.rglob(".*.points") if ".tmp." not in path.name):
        journal = Journal(path, {}, pa.schema([]))
        found[str(path.relative_to(folder))] = len(journal)
        journal.close()
    return found


def finished(folder: Path, journal: str) -> bool:
    """Whether the table of a journal is written."""
    path = folder / journal
    return path.with_name(f"{path.name[1:].removesuffix('.points')}.parquet").exists()


_TRAIN = f"train {DLN} --norm l1 --steps 60 --save-every 3 -o run"
KILLS: dict[str, Kill] = {
    "train": Kill(_TRAIN),
    "train, one checkpoint kept": Kill(f"{_TRAIN} --keep 1"),
    "train, AdamW": Kill(f"train {RECIPE} --steps 60 --save-every 3 -o run"),
    "train, AdamW, one pass": Kill(
        f"train {RECIPE} --steps 60 --save-every 9 --measure smoothness,ics --every 7 -o run"
    ),
    "train, one pass": Kill(f"{_TRAIN} --measure landscape,smoothness,ics,activations,theory --every 7"),
    "train, VGG, one pass": Kill(f"train {VGG} --norm batch --steps 4 --measure landscape,ics --every 1 -o run"),
    "train, VGG": Kill(f"train {VGG} --norm batch --steps 6 --eval-every 1 -o run"),
    **{kind: Kill(f"{line} run", (TRAINED,)) for kind, line in MEASURE.items()},
    "show": Kill("show run/theory.parquet --csv theory.csv --force", (TRAINED, "theory run")),
    "compare": Kill("compare run other", (TRAINED, OTHER, "smoothness run other")),
    "compare, a grid": Kill(STUDY),
    "plot": Kill("plot run/smoothness.parquet -o figures/smoothness.png", (TRAINED, "smoothness run")),
    "report": Kill("report study -o report.html", (STUDY,)),
}
