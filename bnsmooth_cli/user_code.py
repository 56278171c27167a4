"""The user's own norms, problems and optimisers, named `module:attribute`. Only what the user names is imported.

A configuration file may come from anybody, so a name in a file imports nothing. This module does not import torch.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from bnsmooth_cli.errors import InputError

_NAME: Final = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")
_SESSION: Final = "session"  # the last part of the name of what cannot be imported
MAX_NAME: Final = 200  # characters, because the name becomes part of a run's folder
#: Allowed name -> the folder that may hold its module; "" if the module is already imported.
_allowed: dict[str, str] = {}
#: Functions that this process alone has, by the names that runs give them.
_session: dict[str, Any] = {}


def is_code(name: str) -> bool:
    """Whether the name of a norm, a problem or an optimiser refers to the user's code.

    >>> is_code("mymodule:MyNorm"), is_code("lp:3"), is_code("batch")
    (True, False, False)
    """
    return len(name) <= MAX_NAME and bool(_NAME.fullmatch(name))


def allow(*names: object, folder: Path | None = None) -> None:
    """Allow the code that the user names to be imported.

    Args:
        names: Values of options or arguments. Values that do not name code are ignored.
        folder: A folder to search for the modules, besides Python's own path (default: the working directory).
    """
    code = [name for name in names if isinstance(name, str) and is_code(name)]
    _allowed.update(dict.fromkeys(code, str(Path.cwd() if folder is None else folder)))


def name_of(thing: object, option: str, *, session: bool = False) -> str:
    """The name of a class or function, which is thereby allowed. A string is allowed and returned unchanged.

    Args:
        thing: The class or function.
        option: The option or argument that has it: `norm`, `problem`, `optimizer` or `code`.
        session: Whether it may be one that only this process has, like a lambda. Its name then stands for it as long as
            no other one gets the same name.

    Raises:
        InputError: If it is neither, or cannot be imported by its own name, like a lambda.

    >>> from torch import nn
    >>> name_of(nn.Softsign, "norm"), name_of("batch", "norm")
    ('torch.nn.modules.activation:Softsign', 'batch')
    """
    if isinstance(thing, str):
        allow(thing)
        return thing
    if not callable(thing):
        raise InputError(f"{option}: is of the type {type(thing).__name__}; give a name, or a class or function")
    name = f"{thing.__module__}:{getattr(thing, '__qualname__', thing)}"
    if is_code(name):
        _allowed[name] = ""
    if session and not _importable(name, thing, option):
        return _named_in_session(thing)
    if not is_code(name) or load(name, option) is not thing:
        raise InputError(f"{name}: give a class or function that can be imported by this name")
    return name


def _importable(name: str, thing: object, option: str) -> bool:
    if not is_code(name):
        return False
    with suppress(InputError):
        return load(name, option) is thing
    return False


def _named_in_session(thing: Any) -> str:
    """A name for a function that cannot be imported: its module, and as much of its own name as is a name."""
    function = getattr(thing, "func", thing)  # of a functools.partial
    own = str(getattr(function, "__qualname__", type(function).__qualname__)).rpartition(".")[2].strip("<>")
    name = f"{getattr(function, '__module__', None) or 'session'}:{own}.{_SESSION}"
    _allowed[name], _session[name] = "", thing
    return name


def load(name: str, option: str) -> Any:
    """The object that a name refers to.

    Args:
        name: As `module:attribute`.
        option: The option that names it: `norm`, `problem` or `optimizer`.

    Raises:
        InputError: If the user has not named this code, or it cannot be imported.
    """
    if name in _session:
        return _session[name]
    if name.endswith(f".{_SESSION}"):
        raise InputError(
            f"{name}: was a function of the Python session that trained the run, and cannot be imported; give the "
            "function in Python, as in bns.load_point(run, code=[function])"
        )
    check_named(name, option)
    module, _, path = name.partition(":")
    with explaining(f"--{option} {name}: its module cannot be imported"), _searching(_allowed[name]):
        try:
            target: Any = importlib.import_module(module)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{module}.".startswith(f"{error.name}."):
                raise
            hint = f"; leave out the .py, as in {module[:-3]}:{path}" if module.endswith(".py") else ""
            raise InputError(
                f"--{option} {name}: no module '{error.name}' in {Path.cwd()} or where Python looks for them{hint}"
            ) from error
    for part in path.split("."):
        if not hasattr(target, part):
            raise InputError(f"--{option} {name}: the module has no '{part}'")
        target = getattr(target, part)
    return target


def check_named(name: str, option: str) -> None:
    """Raise InputError if the user has not named this code; `option` is what names it."""
    if name not in _allowed:
        raise InputError(f"{name}: this code runs only if you name it; if you trust it, give --{option} {name}")


@contextmanager
def _searching(folder: str) -> Iterator[None]:
    """Put a folder first on the import path, as `python script.py` does, and move it to the end afterwards.

    At the end, its modules are still found, but none of its files replaces a library.
    """
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
    """A digest of the module that a name refers to; None if the name is not allowed or the module has no file."""
    if not is_code(name) or name not in _allowed:
        return None
    with suppress(Exception), _searching(_allowed[name]):
        spec = importlib.util.find_spec(name.partition(":")[0])
        if spec is not None and spec.origin is not None and Path(spec.origin).is_file():
            return hashlib.sha256(Path(spec.origin).read_bytes()).hexdigest()[:16]
    return None


def changed(provenance: Mapping[str, Any]) -> str:
    """The names whose code is not what it was when a table was written, as far as that is known."""
    code = provenance.get("code")
    before = code if isinstance(code, dict) else {}
    return ", ".join(name for name in before if digest(name) not in (None, before[name]))


@contextmanager
def explaining(message: str) -> Iterator[None]:
    """Turn any exception of the user's code into an InputError that begins with `message`."""
    try:
        yield
    except InputError:
        raise
    except (Exception, SystemExit) as error:  # user code may raise anything
        raise InputError(f"{message} ({_explain(error)})") from error


def _explain(error: BaseException) -> str:
    """An error of the user's code in one line: its type, its message, and the line of their file that raised it."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames = [(error.filename, error.lineno or 0)]
    package = str(Path(__file__).parent)
    frames = [frame for frame in frames if not re.search(r"site-packages|<frozen|importlib", frame[0])]
    where = [f", {Path(file).name} line {line}" for file, line in frames if not file.startswith(package)][-1:]
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}{''.join(where)}"
