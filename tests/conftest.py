"""Fixtures of all tests: small runs of both problems, the command line in-process, and a cache folder of its own."""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shape_checks
import torch

pytest.register_assert_rewrite("brute_force")
shape_checks.install()  # before the packages that it checks are imported

from complaints import complaints  # noqa: E402
from helpers import SMALL  # noqa: E402

import bnsmooth_cli as bns  # noqa: E402
from bnsmooth_cli.cli import main  # noqa: E402

torch.set_num_threads(1)

#: The browsers that tests look for.
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all cases of a test as slow, except the number that its mark `fast` has, spread evenly over them."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("fast"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for of_test in cases.values():
        (number,) = of_test[0].get_closest_marker("fast").args  # type: ignore[union-attr]
        kept = {round(i * (len(of_test) - 1) / max(1, number - 1)) for i in range(number)}
        for place, item in enumerate(of_test):
            if place not in kept:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Samples of two classes."""
    torch.manual_seed(0)
    return torch.randn(16, 3).double(), torch.randint(2, (16,))


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bns.Run]:
    """Train a small run, as small_run(problem, norm, **settings); equal arguments give the same run in a session."""
    made: dict[Any, bns.Run] = {}

    def make(problem: str, norm: str, **settings: Any) -> bns.Run:
        key = (problem, norm, *sorted(settings.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("runs") / f"{problem}-{norm.replace(':', '')}"
            values = {**SMALL[problem], **settings}
            made[key] = bns.train(problem, norm, output=folder, device="cpu", **values)
        return made[key]

    return make


@pytest.fixture
def narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the commands of `cli` take their output for a terminal of 80 columns without colours."""
    for name, value in {"FORCE_COLOR": "1", "TERM": "dumb", "COLUMNS": "80", "LINES": "25"}.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], tuple[int, str, str]]:
    """Run a command in this process and in an empty folder: cli("train --norm l1") -> (status, stdout, complaints).

    Complaints are stderr without the lines of progress; `cli.stderr` has all of it.
    """
    monkeypatch.chdir(tmp_path)

    def call(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bnsmooth", *shlex.split(line)])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        with pytest.raises(SystemExit) as stop:
            main()
        for number, handler in handlers.items():  # a command ends its process at a signal, which these tests must not
            signal.signal(number, handler)
        streams = capsys.readouterr()
        call.stderr = streams.err  # type: ignore[attr-defined]
        return int(stop.value.code or 0), streams.out, complaints(streams.err)

    return call


@pytest.fixture(scope="module")
def browser() -> Any:
    """A headless browser that is installed on this machine."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    options = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
               "--disable-component-update", "--disable-sync"]  # fmt: skip
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=options)
        yield opened
        opened.close()
