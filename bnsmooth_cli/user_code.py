"""Code of the user's own, by the name `module:attribute`: a norm, a problem. It runs only where the user names it.

A configuration may come with a file from anybody, so a name in a file imports nothing by itself. No torch here.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from bnsmooth_cli.errors import InputError

_NAME: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
LONGEST: Final = 200  # characters: a run's folder is called by it
#: What the user has named -> the folder in which its module may be, "" where it is at hand.
_allowed: dict[str, str] = {}


def is_code(name: str) -> bool:
    """Whether a norm or a problem is called as the user's own are.

    >>> is_code("mymodule:MyNorm"), is_code("lp:3"), is_code("batch")
    (True, False, False)
    """
    return len(name) <= LONGEST and bool(_NAME.fullmatch(name))


def allow(*names: object, folder: Path | None = None) -> None:
    """What the user has named, by an option or an argument, may be imported: from `folder` (default: the current one),
    and from wherever Python finds modules."""
    chosen = [name for name in names if isinstance(name, str) and is_code(name)]
    _allowed.update(dict.fromkeys(chosen, str(Path.cwd() if folder is None else folder)))


def name_of(thing: object) -> str:
    """The name of a class or function that is at hand, which so is named by the user; of a name the name itself.

    >>> from torch import nn
    >>> name_of(nn.Softsign), name_of("batch")
    ('torch.nn.modules.activation:Softsign', 'batch')
    """
    name = thing if isinstance(thing, str) else f"{thing.__module__}:{getattr(thing, '__qualname__', thing)}"
    if isinstance(thing, str):
        allow(name)
        return name
    if is_code(name):
        _allowed[name] = ""
    if not is_code(name) or load(name, "norm") is not thing:
        raise InputError(f"{name}: give a class or function that its module holds by this name")
    return name


def load(name: str, option: str) -> Any:
    """What a name stands for; `option` (norm or problem) is how the user names it.

    Raises InputError for a name that the user has not given, and for one that does not import.
    """
    if name not in _allowed:
        raise InputError(f"{name}: is code, which runs only where you name it: if you trust it, give --{option} {name}")
    module, _, path = name.partition(":")
    try:
        with _looking_in(_allowed[name]):
            found: Any = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            hint = f"; leave out the .py, as in {module[:-3]}:{path}" if module.endswith(".py") else ""
            raise InputError(
                f"--{option} {name}: no module '{error.name}' in {Path.cwd()} or where Python looks for them{hint}"
            ) from error
        raise InputError(f"--{option} {name}: its module does not import ({explain(error)})") from error
    except (Exception, SystemExit) as error:  # it raises whatever its author likes
        raise InputError(f"--{option} {name}: its module does not import ({explain(error)})") from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise InputError(f"--{option} {name}: the module has no '{part}'")
        found = getattr(found, part)
    return found


@contextmanager
def _looking_in(folder: str) -> Iterator[None]:
    """A folder of modules before all others, as for `python script.py`, and behind them afterwards: its modules are
    still found, and no file of it takes the place of a library's."""
    if not folder or folder in sys.path:
        yield
        return
    if not getattr(sys.flags, "safe_path", False):
        sys.path.insert(0, folder)
    try:
        yield
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
        sys.path.append(folder)


def digest(name: str) -> str | None:
    """What tells one state of a name's module from another; None where the user has not named it, or it is no file."""
    if not is_code(name) or name not in _allowed:
        return None
    with suppress(Exception), _looking_in(_allowed[name]):
        spec = importlib.util.find_spec(name.partition(":")[0])
        if spec is not None and spec.origin is not None and Path(spec.origin).is_file():
            return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:16]
    return None


def explain(error: BaseException) -> str:
    """An error of the user's code in a line: its kind, message, and the line of their file that it came from."""
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    if isinstance(error, SyntaxError) and error.filename:
        frames = [(error.filename, error.lineno or 0)]
    ours = str(Path(__file__).parent)
    theirs = [(file, line) for file, line in frames if not re.search(r"site-packages|<frozen|importlib", file)]
    where = [f", {Path(file).name} line {line}" for file, line in theirs if not file.startswith(ours)][-1:]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}{''.join(where)}"
