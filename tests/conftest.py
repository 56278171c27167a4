"""What the tests share: small runs of both problems, and a cache folder of their own."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import SMALL

import bnsmooth_cli as bns
from bnsmooth_cli.cli import main

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., bns.Run]:
    """small_run(problem, norm, **settings): trained once a session."""
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
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], tuple[int, str, str]]:
    """cli("train --norm l1") -> (exit status, stdout, stderr), in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def call(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["bnsmooth", *shlex.split(line)])
        with pytest.raises(SystemExit) as stop:
            main()
        streams = capsys.readouterr()
        return int(stop.value.code or 0), streams.out, streams.err

    return call
