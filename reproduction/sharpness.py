"""Write docs/sharpness.md and its tables: `python -m reproduction.sharpness`.

`make sharpness` makes the tables. The page describes them and tests nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd

import bnsmooth_cli as bns
from bnsmooth_cli.figures import style
from bnsmooth_cli.studies.folder import Study
from bnsmooth_cli.studies.metrics import measured_rows
from reproduction import markdown
from reproduction.findings import described

#: The tables of VGG by what their loss is a mean over: the step's batch, the same in eval mode, and eight batches.
MODES: Final = ("vgg", "vgg-eval", "vgg-train-8")
#: The steps of the transformer that the page's table has. Before the first, the learning rate rises.
STEPS: Final = (100, 200, 300, 400, 500)
MIDDLE: Final = 300
PAGE: Final = Path("docs/sharpness.md")


def of_threshold(rows: pd.DataFrame) -> pd.DataFrame:
    """How near runs are to their thresholds.

    Args:
        rows: Rows of kind `smoothness`.

    Returns:
        The rows with `preconditioned_share`, the preconditioned sharpness over its threshold, and `plain_share`, the
        sharpness over the threshold 2 / lr of plain gradient descent. NaN without a threshold.
    """
    return rows.assign(
        preconditioned_share=rows["preconditioned"] / rows["threshold"],
        plain_share=rows["sharpness"] * rows["step_lr"] / 2,
    )


@dataclass(frozen=True)
class Table:
    """A table of the page, whose rows begin with a norm.

    Attributes:
        headings: The headings of its columns.
        rows: The cells of each row.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __str__(self) -> str:
        return markdown.table(self.headings, self.rows)

    def at(self, heading: str, norm: str, step: str) -> float:
        """The median in such a cell."""
        return float(self.cell(heading, norm, step).split(" [")[0])

    def cell(self, heading: str, norm: str, step: str = "") -> str:
        """A cell of the row of a norm, at a step if rows have one."""
        start = [f"`{norm}`", *[step] * bool(step)]
        (row,) = (row for row in self.rows if [*row[: len(start)]] == start)
        return row[self.headings.index(heading)]


class Sharpness:
    """The numbers of the page.

    Args:
        folder: The folder of the page's tables.
        norms: The folder of the tables of docs/norms.md, which has the losses of the transformer.
    """

    def __init__(self, folder: Path, norms: Path) -> None:
        self._folder, self._norms = folder, norms

    def _read(self, name: str) -> pd.DataFrame:
        """The rows of a table, with the size of the eigenvalue as `sharpness`."""
        rows = bns.read_table(self._folder / f"{name}.parquet", "smoothness")
        return rows.assign(sharpness=rows["sharpness"].abs()).sort_values(["step", "seed"])

    def seeds(self, name: str) -> int:
        """The number of seeds of a table."""
        return self._read(name)["seed"].nunique()

    def modes(self) -> Table:
        """VGG's loss and sharpness in train mode, in eval mode, and over eight batches."""
        keys = ["norm", "step", "seed"]
        parts = [self._read(name)[[*keys, "loss", "sharpness"]] for name in MODES]
        train, evaluated, eight = (part.set_index(keys).add_suffix(f"_{i}") for i, part in enumerate(parts))
        joined = train.join([evaluated, eight], how="outer")
        joined = joined.assign(
            in_eval=joined["sharpness_1"] / joined["sharpness_0"],
            over_eight=joined["sharpness_2"] / joined["sharpness_0"],
        )
        shown = {"loss_0": "loss, train mode", "loss_1": "loss, eval mode", "sharpness_0": "sharpness, train mode",
                 "sharpness_1": "sharpness, eval mode", "in_eval": "eval / train",
                 "over_eight": "eight batches / one"}  # fmt: skip
        return _by_step(joined.reset_index(), shown)

    def batch_sharpness(self, name: str) -> Table:
        """Batch sharpness and the other sharpnesses of a table in units of 1 / lr."""
        rows, shown = self._read(name), {}
        for column, words in {"batch_sharpness": "batch sharpness", "batch_sharpness_error": "its standard error",
                              "curvature": "curvature", "sharpness": "sharpness"}.items():  # fmt: skip
            rows[f"{column}_lr"] = rows[column] * rows["step_lr"]
            shown[f"{column}_lr"] = f"{words} × lr"
        rows["critical"] = rows["critical_lr"] / rows["step_lr"]
        return _by_step(rows, {**shown, "critical": "critical lr / lr"})

    def adam(self) -> Table:
        """The transformer's last loss, and its preconditioned sharpness over the threshold at STEPS."""
        found = of_threshold(self._read("gpt"))
        losses = bns.read_table(self._norms / "gpt.summary.parquet", "compare-summary").set_index(["norm", "figure"])
        rows = []
        for norm in _norms(found):
            of_norm, loss = found[found["norm"] == norm], losses.loc[(norm, "final_loss")]
            shares = [_of_seeds(of_norm[of_norm["step"] == step]["preconditioned_share"]) for step in STEPS]
            plain = of_norm[of_norm["step"] == MIDDLE]["plain_share"]
            loss_text = f"{loss['median']:.3f} [{loss['low']:.3f}, {loss['high']:.3f}]"
            rows.append([f"`{norm}`", loss_text, *shares, _of_seeds(plain)])
        return Table(("norm", "last training loss", *(f"step {step}" for step in STEPS), "sharpness over 2 / lr"), rows)


def _by_step(rows: pd.DataFrame, shown: Mapping[str, str]) -> Table:
    """The columns of rows under these headings, over seeds, for each norm and step."""
    cells = [
        [f"`{norm}`", f"{step:,}", *(_of_seeds(of_step[column]) for column in shown)]
        for norm in _norms(rows)
        for step, of_step in rows[rows["norm"] == norm].groupby("step")
    ]
    return Table(("norm", "step", *shown.values()), cells)


def _norms(rows: pd.DataFrame) -> list[str]:
    """The norms of rows, in the order of legends."""
    return sorted(rows["norm"].unique(), key=style.rank)


def _of_seeds(values: pd.Series[float]) -> str:
    """The median over seeds and the interval of the claims; a dash without values."""
    if values.isna().all():
        return "–"
    return markdown.spread(*described(values.astype(np.float64)))


def gather(gpt: Path, vgg: Path, target: Path) -> None:
    """Write the page's tables from what `make sharpness` has measured.

    Args:
        gpt: The study of the transformer.
        vgg: The folder of VGG: a study of the name `vgg`, and the tables of other objectives and of CIFAR-10.
        target: The folder of the tables. A table that `vgg` lacks stays as it is.
    """
    target.mkdir(parents=True, exist_ok=True)
    for name, study in {"gpt": gpt, "vgg": vgg / "vgg"}.items():
        parts = [measured_rows(run, "smoothness") for run in Study(study).runs()]
        bns.save_table(pd.concat(parts, ignore_index=True), target / f"{name}.parquet")
    for name in (*MODES[1:], "cifar"):
        if (path := vgg / f"{name}.parquet").is_file():
            bns.save_table(bns.read_table(path, "smoothness"), target / path.name)


def text(folder: Path, norms: Path) -> str:
    """The text of the page.

    Args:
        folder: The folder of its tables.
        norms: The folder of the tables of docs/norms.md.
    """
    return markdown.templates().get_template("sharpness.md").render(found=Sharpness(folder, norms), middle=MIDDLE)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m reproduction.sharpness", description=__doc__)
    parser.add_argument(
        "--gather", type=Path, nargs=2, metavar=("GPT", "VGG"),
        help="write its tables first, from the study of the transformer and the folder of VGG",
    )  # fmt: skip
    options = parser.parse_args()
    folder = PAGE.with_suffix("")
    if options.gather:
        gpt, vgg = options.gather
        gather(gpt, vgg, folder)
    markdown.write(text(folder, PAGE.with_name("norms")), PAGE)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, ValueError) as error:  # an unusable study or table
        print(f"reproduction.sharpness: {error}", file=sys.stderr)
        sys.exit(2)
