"""`bnsmooth report`: the report of a study as one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bnsmooth_cli.cli import terminal
from bnsmooth_cli.cli.options import completion
from bnsmooth_cli.errors import InputError, unknown


def _complete_format(incomplete: str) -> list[str]:
    from bnsmooth_cli.report import FORMATS

    return completion(FORMATS)(incomplete)


def report(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="The folder of a study.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="PAGE", show_default=False, help="The page (default: report.html in the study)."
        ),
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="html|md",
            show_default=False,
            help="The format (default: the page's suffix).",
            autocompletion=_complete_format,
        ),
    ] = None,
) -> None:
    """Write the report of a study: claims, figures, a sortable comparison, settings and commands.

    An HTML report is one file that works offline. A Markdown report keeps its figures in a folder beside it.

    [bold]Examples[/]

      bnsmooth report study -o report.html

      bnsmooth report study --format md
    """
    from bnsmooth_cli import report
    from bnsmooth_cli.studies.folder import Study

    suffix = "" if output is None else output.suffix.removeprefix(".").lower()
    chosen = form or (suffix if suffix in report.FORMATS else "html")
    if chosen not in report.FORMATS:
        raise unknown("format", chosen, report.FORMATS)
    if output is not None and suffix != chosen:
        raise InputError(f"-o {output}: the name of a page in format {chosen} ends in .{chosen}")
    page = output or study / f"report.{chosen}"
    report.write(Study(study), page, chosen)
    terminal.wrote(page)
