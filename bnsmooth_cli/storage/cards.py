"""What a prompt and a notebook show of an object: a few labelled lines, as text and as a small HTML table."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

from bnsmooth_cli.config import Config, resolve
from bnsmooth_cli.identity import differing
from bnsmooth_cli.storage.files import first_line

#: The most rows of a table.
MAX_ROWS: Final = 50
#: No colours but a grey that shows on white and on black, so that the card has those of the notebook.
_STYLE: Final = (
    "<style>.bnsmooth-card{color:inherit}.bnsmooth-card table{border-collapse:collapse;margin:.3em 0 .6em}"
    ".bnsmooth-card th,.bnsmooth-card td{text-align:left!important;vertical-align:top;padding:.15em 1.2em .15em 0;"
    "border-bottom:1px solid rgba(128,128,128,.35);background:transparent;color:inherit;white-space:nowrap}"
    ".bnsmooth-card td:last-child{white-space:normal}"
    ".bnsmooth-card th{font-weight:600}.bnsmooth-card .what{opacity:.7}</style>"
)


@dataclass(frozen=True)
class Card:
    """A card.

    Attributes:
        what: What it describes, such as "Run".
        name: Its name.
        lines: Its lines by label. Empty lines are left out.
        header: The columns of a table below them, which only HTML shows; none by default.
        rows: The rows of that table.
    """

    what: str
    name: str
    lines: Mapping[str, str]
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = field(default_factory=list)

    def text(self) -> str:
        """The card as text.

        >>> print(Card("Run", "runs/x", {"state": "finished", "tables": ""}).text())
        Run runs/x
          state  finished
        """
        lines = {label: _printable(line) for label, line in self.lines.items() if line}
        width = max(map(len, lines), default=0)
        title = f"{self.what} {_printable(self.name)}"
        return "\n".join([title, *(f"  {label:{width}}  {line}" for label, line in lines.items())])

    def html(self) -> str:
        """The card as HTML, in the colours of the page around it.

        >>> "&lt;b&gt;" in Card("Run", "<b>", {}).html()
        True
        """
        lines = "".join(
            f"<tr><th>{escape(label)}</th><td>{escape(line)}</td></tr>" for label, line in self.lines.items() if line
        )
        table = f"<table>{lines}</table>" if lines else ""
        if self.rows:
            head = "".join(f"<th>{escape(name)}</th>" for name in self.header)
            cells = ("".join(f"<td>{escape(cell)}</td>" for cell in row) for row in self.rows)
            table += f"<table><tr>{head}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
        title = f'<span class="what">{escape(self.what)}</span> <b>{escape(self.name)}</b>'
        return f'{_STYLE}<div class="bnsmooth-card"><div>{title}</div>{table}</div>'


class Shown(ABC):
    """An object that a prompt and a notebook show by its card."""

    @abstractmethod
    def _card(self) -> Card: ...

    def __repr__(self) -> str:
        return self._card().text()

    def _repr_html_(self) -> str:
        return self._card().html()


def settings_in_words(config: Config) -> str:
    """The preset that is nearest to a configuration, and the settings that are not that preset's.

    >>> from bnsmooth_cli.config import resolve
    >>> settings_in_words(resolve("vgg")), settings_in_words(resolve("vgg", "paper", width=0.5))
    ('preset quick', 'preset paper, but width 0.5')
    """
    own, (preset, _) = config.settings_text, config.nearest_preset()
    unlike = differing(config.problem, [own, resolve(config.problem, preset).settings_text])[own]
    return f"preset {preset}" + (f", but {unlike}" if unlike else "")


def _printable(text: str) -> str:
    """A text without characters that a terminal would obey."""
    return text if text.isprintable() else ascii(text)


def shortened(rows: Sequence[Sequence[str]]) -> Sequence[Sequence[str]]:
    """The rows of a table of a card: the first of many.

    >>> shortened([["a", "b"]] * 100)[-1]
    ['and 51 more', '']
    """
    if len(rows) <= MAX_ROWS:
        return rows
    shown = MAX_ROWS - 1
    return [*rows[:shown], [f"and {len(rows) - shown} more", *[""] * (len(rows[0]) - 1)]]


def guarded(what: str, name: str, card: Callable[[], Card]) -> Card:
    """The card that a function makes, or one that says why it cannot be made: showing an object must not fail.

    >>> guarded("Run", "runs/x", lambda: Card("", "", {"a": str(1 // 0)})).lines
    {'state': 'cannot be read: integer division or modulo by zero'}
    """
    try:
        return card()
    except Exception as error:  # of files that may hold anything
        return Card(what, name, {"state": f"cannot be read: {first_line(error)}"})
