"""The state of an optimiser in a checkpoint: killed runs resume with it, and one that does not fit is refused."""

from __future__ import annotations

import copy
import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from attempts import ADAMW, contents, done, judge, run

import bnsmooth_cli as bns
from bnsmooth_cli import optimisers
from bnsmooth_cli.errors import InputError
from bnsmooth_cli.storage.tensors import load_tensors, save_tensors

pytestmark = pytest.mark.slow

#: What belongs to no optimiser's state, or not in that place.
WRONG = (
    None, "text", 7, float("nan"), [], {}, torch.zeros(3), torch.zeros(0), torch.zeros(4, 4, dtype=torch.float64),
    torch.zeros(4, 4, dtype=torch.int64), torch.zeros(4, 4).to_sparse(), torch.zeros(()).bool(),
)  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of AdamW, to be extended: its schedule is constant."""
    folder = tmp_path_factory.mktemp("adamw")
    done(f"train {ADAMW} --steps 8 --save-every 4 -o run", folder)
    return folder


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all leaves in nested containers."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list | tuple) else None
    if keys is None:
        yield path
        return
    for key in keys:
        yield from places(value[key], (*path, key))


def changed(content: dict[str, Any], path: tuple[Any, ...], value: Any, remove: bool = False) -> dict[str, Any]:
    """A copy with another value at a place."""
    content = copy.deepcopy(content)
    place: Any = content
    for key in path[:-1]:
        if isinstance(place[key], tuple):
            place[key] = [*place[key]]
        place = place[key]
    if remove:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return content


def of_the_optimiser(content: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [path for path in places(content) if path[0] not in ("format", "run", "config", "step", "model", "crc")]


def test_every_damage_to_a_state_is_refused_with_one_line(trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run")
    file = tmp_path / "run/checkpoints/000008.pt"
    content, found = load_tensors(file), 0
    leaves, more = of_the_optimiser(content), f"train {ADAMW} --steps 12 --save-every 4 -o run"
    assert sum(isinstance(_at(content, path), torch.Tensor) for path in leaves) >= 8  # two averages of each parameter
    cases = [(path, value, False) for path, value in itertools.product((leaves[0], leaves[1], leaves[-1]), WRONG)]
    cases += [((leaves[0][0],), value, False) for value in WRONG]
    cases += [(path, None, True) for path in (*leaves[:2], leaves[-1], (leaves[0][0],))]
    for path, value, remove in cases:
        if not remove and _alike(_at(content, path), value):
            continue
        save_tensors(file, changed(content, path, value, remove))
        with pytest.raises(InputError, match=r"000008\.pt: .") as error:
            bns.load_point(file)
        assert "\n" not in str(error.value), (path, value)
        found += 1
        if found % 10 == 0:
            for line in ("ics run/checkpoints/000008.pt -o t.parquet", more):
                ended = run(line, tmp_path)
                assert ended.code == 2, (path, value, ended.out)
                assert judge(ended, "000008.pt") == "", (path, value)
    assert found >= 40
    save_tensors(file, content)
    done(more, tmp_path)


def _at(content: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


def _alike(old: Any, new: Any) -> bool:
    """Whether a value can stand for another one."""
    if isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor):
        return (old.shape, old.dtype, old.layout) == (new.shape, new.dtype, new.layout)
    return isinstance(old, list | tuple | dict) and not old and not new


@pytest.mark.parametrize("name", ["sgd", "nadam", "rmsprop"])  # the others keep tensors of the same names as AdamW
def test_the_state_of_another_optimiser_is_refused_whatever_the_configuration_says(trained, tmp_path, name):
    shutil.copytree(trained / "run", tmp_path / "run")
    done(f"train {ADAMW.replace('adamw', name)} --steps 8 --save-every 8 -o other", tmp_path)
    mine, other = (tmp_path / f"{folder}/checkpoints/000008.pt" for folder in ("run", "other"))
    save_tensors(mine, {**load_tensors(other), "config": load_tensors(mine)["config"]})
    ended = run("ics run/checkpoints/000008.pt -o t.parquet", tmp_path)
    assert ended.code == 2
    assert judge(ended, "000008.pt") == ""


@pytest.mark.parametrize("name", [rule.name for rule in optimisers.RULES if rule.name != "adamw"])
def test_a_run_is_not_continued_with_another_optimiser(trained, tmp_path, name):
    shutil.copytree(trained / "run", tmp_path / "run")
    ended = run(f"train {ADAMW.replace('adamw', name)} --steps 12 --save-every 4 -o run", tmp_path)
    assert ended.code == 2
    assert f"optimizer adamw, now {name}" in ended.err
    assert judge(ended, "run") == ""


SCHEDULED = {"schedule": "cosine", "warmup": 3}
RECIPES: dict[str, dict[str, Any]] = {
    "adamw, cosine, clip": {"optimizer": "adamw", "lr": 1e-3, "clip": 0.5, "weight_decay": 0.1, **SCHEDULED},
    "nadam, linear": {"optimizer": "nadam", "lr": 1e-3, "schedule": "linear"},
    "radam, step": {"optimizer": "radam", "lr": 1e-3, "schedule": "step", "warmup": 2},
    "rmsprop with momentum": {"optimizer": "rmsprop", "lr": 1e-4, "momentum": 0.9, "square_decay": 0.9, "clip": 1.0},
    "sgd, Nesterov": {"lr": 1e-3, "momentum": 0.9, "nesterov": True, **SCHEDULED},
}
NETWORKS: dict[str, dict[str, Any]] = {
    "dln": {"depth": 3, "dimension": 4, "samples": 20},
    "vgg": {"width": 0.02, "batch_size": 4, "eval_every": 9},
}


class Stop(Exception):
    pass


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("problem", NETWORKS)
def test_a_run_that_breaks_off_anywhere_and_is_resumed_has_the_bytes_of_a_whole_one(tmp_path, problem, recipe):
    settings = {**NETWORKS[problem], **RECIPES[recipe], "steps": 9, "save_every": 3, "device": "cpu"}
    measured = {"measure": ["landscape", "smoothness"], "every": 3}
    whole = contents(bns.train(problem, "batch", output=tmp_path / "whole/run", **measured, **settings).path)
    assert {"checkpoints/000003.pt", "checkpoints/000009.pt", "smoothness.parquet"} <= {*whole}
    for measuring in (measured, {}):
        here = tmp_path / f"broken-off-{len(measuring)}/run"
        for limit in (3, 6, 9):

            def stop(step: int, _: float, limit: int = limit) -> None:
                if step >= limit:
                    raise Stop

            with pytest.raises(Stop):
                bns.train(problem, "batch", output=here, progress=stop, **measuring, **settings)
        bns.train(problem, "batch", output=here, **measured, **settings)
        found = contents(here)
        assert [name for name in {*whole, *found} if whole.get(name) != found.get(name)] == []
