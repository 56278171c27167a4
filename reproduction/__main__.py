"""Run the studies of a scale, or resume them, and write the page.

`page` writes it from the tables alone, `findings` writes docs/findings.md from them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bnsmooth_cli.cli.studying import Board
from bnsmooth_cli.errors import IncompleteError
from bnsmooth_cli.studies.run import plan, run
from bnsmooth_cli.user_code import allow
from reproduction import findings_page, page, saturation
from reproduction.gather import finished, gather, probed
from reproduction.published import Published
from reproduction.scales import SCALES, Plan, plans


def reproduce(
    studies: Sequence[Plan],
    work: Path,
    folder: Path,
    facts: dict[str, Any],
    train: bool = True,
    earlier: Published | None = None,
) -> int:
    """Run the studies in `work` one after the other, and write the tables, figures and page in `folder`.

    Args:
        studies: The studies.
        work: The folder that holds them.
        folder: The folder of the page.
        facts: The options of `make paper`, for the page.
        train: False to write the page of the finished runs alone.
        earlier: The page whose runs are kept if `work` does not have them.

    Returns:
        1 if a run has failed, otherwise 0. The page shows the results of the other runs.
    """
    work.mkdir(parents=True, exist_ok=True)
    status = 0
    for study in studies if train else ():
        print(f"{study.name}: {study.purpose}", flush=True)
        for grid in study.grids:
            allow(*grid.norms)  # those of the experiments on noise are code
            try:
                with Board() as board:
                    failed = bool(run(plan(grid, work / study.name, jobs=facts["jobs"]), progress=board).failed)
            except IncompleteError as error:
                print(f"reproduction: {error}", file=sys.stderr)
                failed = True
            status = max(status, int(failed))
    for name, of_study in probed(finished(studies, work)):
        saturation.probe(of_study, work / f"{name}.parquet")
    gather(studies, work, folder, facts, earlier)
    page.draw(folder)
    page.write(folder)
    return status


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m reproduction", description=__doc__)
    parser.add_argument(
        "scale", choices=[*SCALES, "page", "findings"], help="how much to train; page and findings train nothing"
    )
    parser.add_argument(
        "--data", type=Path, help="the folder of CIFAR-10, for quarter and paper (default: download it)"
    )
    parser.add_argument("--note", default="", help="a note about the data, for the page")
    parser.add_argument("--steps", type=int, help="the largest number of steps of any run")
    parser.add_argument(
        "--only", metavar="A,B", help="these studies of the scale, and dln, which the page needs (default: all)"
    )
    parser.add_argument("--finished", action="store_true", help="train nothing; write the page of the finished runs")
    parser.add_argument("--add", action="store_true", help="keep the runs of the page that --work does not have")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: 2)")
    parser.add_argument("--work", type=Path, default=Path("paper"), help="the folder of the studies (default: paper)")
    parser.add_argument(
        "-o", "--output", type=Path, help="the folder of the page (default: docs/reproduction; quick: its quick/)"
    )
    options = parser.parse_args()
    if options.scale in ("page", "findings", "quick") and options.data:
        parser.error(f"{options.scale} takes no --data; that is for quarter and paper")
    if options.data and not options.data.exists():
        parser.error(f"--data {options.data}: no such file or folder")
    for name in ("steps", "jobs"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} {value}: give a whole number of at least 1")
    output = options.output or Path("docs/reproduction", *["quick"] * (options.scale == "quick"))
    if options.scale in ("page", "findings"):
        if not (output / "reproduction.json").is_file():
            parser.error(f"-o {output}: has no reproduction.json to write a page from; make paper writes it")
        if options.scale == "findings":
            findings_page.write(output, output.parent / "findings.md")
            return 0
        page.draw(output)
        page.write(output)
        return 0
    facts = {"scale": options.scale, "only": options.only, "data": None if options.scale == "quick" else "CIFAR-10",
             "note": options.note, "steps": options.steps, "jobs": options.jobs}  # fmt: skip
    data = str(options.data.resolve()) if options.data else None
    only = None if options.only is None else [name.strip() for name in options.only.split(",")]
    earlier = Published(output, facts) if options.add else None
    if earlier is not None and only is not None:
        only = [*dict.fromkeys((*earlier.facts["studies"], *only))]
        facts["only"] = ",".join(only)
    studies = plans(options.scale, data, options.steps, only)
    # All runs of a study have the same length, so another length makes another study.
    work = options.work / (f"{options.scale}-{options.steps}" if options.steps else options.scale)
    return reproduce(studies, work, output, facts, train=not options.finished, earlier=earlier)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("reproduction: interrupted; the same command resumes it", file=sys.stderr)
        sys.exit(130)
    except (OSError, ValueError) as error:  # an unusable input, table or page
        print(f"reproduction: {error}", file=sys.stderr)
        sys.exit(2)
