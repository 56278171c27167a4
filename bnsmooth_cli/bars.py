"""Progress bars of the Python functions: in a terminal and in a notebook, and nowhere else unless they are asked for.

The bars are tqdm's. Without ipywidgets, rich shows no progress in Jupyter, and tqdm shows a line of text.
"""

from __future__ import annotations

import sys
import threading
import warnings
from typing import Any, Final

#: How often a file gets a new line of progress, in seconds.
SELDOM: Final = 10.0


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def _in_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def wanted(progress: bool | None) -> bool:
    """Whether bars are shown: True and False decide; None shows them in a terminal and in a notebook.

    >>> wanted(True), wanted(False)
    (True, False)
    """
    return in_notebook() or _in_terminal() if progress is None else progress


class Bar:
    """A progress bar, which appears with its first update and stays when it is closed.

    Args:
        label: The text before the bar.
        unit: What is counted, in the plural.
        layout: The `bar_format` of tqdm.
    """

    def __init__(self, label: str, unit: str = "steps", layout: str | None = None) -> None:
        self._label, self._unit, self._layout = label, unit, layout
        self._bar: Any = None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, done: float, total: float, note: str = "", label: str | None = None) -> None:
        """Show that `done` of `total` are done.

        Args:
            done: What is done by now; the first value is where the work begins.
            total: All that there is.
            note: A text behind the bar.
            label: Another text before the bar.
        """
        if self._bar is None:
            self._bar = _tqdm()(
                desc=self._label, total=total, initial=done, unit=f" {self._unit}", bar_format=self._layout,
                dynamic_ncols=True, mininterval=0.1 if in_notebook() or _in_terminal() else SELDOM,
                file=sys.stdout if in_notebook() else sys.stderr,  # a notebook shows stderr in red
            )  # fmt: skip
        self._bar.total = total
        if label is not None:
            self._bar.set_description_str(label, refresh=False)
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update(done - self._bar.n)

    def end(self, note: str | None = None, whole: bool = True) -> None:
        """Close the bar, with a last note.

        Args:
            note: The text behind the bar; None keeps it.
            whole: Whether all is done; otherwise the bar stays where it is.
        """
        if self._bar is not None:
            if whole:
                self._bar.update(self._bar.total - self._bar.n)
            if note is not None:
                self._bar.set_postfix_str(note, refresh=False)
            self.close()

    def close(self) -> None:
        """Close the bar, and let it stay as it is."""
        if self._bar is not None:
            self._bar.close()


def _tqdm() -> Any:
    """The class of the bars: tqdm's widget in a notebook that has ipywidgets, and its line of text elsewhere."""
    from tqdm import TqdmWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TqdmWarning)  # that ipywidgets is not installed, which it can do without
        from tqdm.auto import tqdm

    class Lone(tqdm):  # type: ignore[misc]
        """Bars with a lock of this process alone: tqdm's own is a semaphore, which processes that are killed leave."""

        monitor_interval = 0  # and no thread that looks after slow bars

    Lone.set_lock(_lock)
    return Lone


_lock: Final = threading.RLock()
