"""Trials of random command lines: any command, option and value, most of them nearly right."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import typer
from attempts import MEASURE, Attempt, Try, done, judge
from forked import command
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image

from bnsmooth_cli.cli.commands import app

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
_STEPS = "0", "0,2", "2"
#: Option -> values that it takes, and values that look similar.
VALUES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "--problem": (
        ("dln", "dln", "vgg", "gpt", "mine:build"), ("dnl", "mine:Norm", "mine:absent", "__main__:x", "sys:exit")
    ),
    "--norm": (
        ("none", "batch", "l1", "lp:3", "noisy-none", "layer", "rms", "weight", "group:1", "dyt", "mine:Norm"),
        ("bacth", "lp:0.5", "lp:nan", "lp:", "noisy-noisy-none", "group:0", f"group:{'9' * 5000}", "os:system",
         "sys:exit", "mine:build", "absent:Norm", f"{'n' * 10**6}:{'n' * 10**6}"),
    ),
    "--lr": (("1e-4", "1e-3", "1e4"), ("0", "nan", "1e300")),
    "--seed": (("0", "7"), ("-1", "1.5")),
    "--preset": (("quick", "paper"), ("x",)),
    "--data": (("images", "text.txt", "shakespeare"), ("absent", "run", "cifar11", "study.toml")),
    "--steps": (("1", "2", "3"), ("0", "1e9", "99999999999")),
    "--batch-size": (("1", "2", "4"), ("0", "100000000000")),
    "--momentum": (("0", "0.9"), ("1", "-1", "nan")),
    "--optimizer": (
        ("sgd", "adam", "adamw", "adamw", "nadam", "radam", "rmsprop", "mine:own", "torch.optim:SGD"),
        ("adma", "mine:build", "mine:absent", "mine:lbfgs", "torch.optim:LBFGS", "os:system", "sys:exit", ""),
    ),
    "--betas": (("0.9,0.95", "0,0", "0.9, 0.999"), ("0.9", "1,1", "0.9,nan", "-1,0", "0.9,0.99,0.999", "x,y")),
    "--eps": (("1e-6",), ("0", "-1", "nan")),
    "--square-decay": (("0.9",), ("1", "-1", "nan")),
    "--schedule": (("constant", "cosine", "linear", "step"), ("cosin", "")),
    "--warmup": (("0", "1", "2"), ("-1", "99", "x")),
    "--clip": (("0", "1", "1e-3"), ("-1", "nan", "1e400")),
    "--depth": (("1", "3", "11"), ("0", "99999")),
    "--width": (("0.02",), ("0", "nan", "1e9")),
    "--dimension": (("1", "3"), ("0", "100000")),
    "--embedding": (("4", "6"), ("0", "5", "100000")),
    "--heads": (("1", "2"), ("0", "4", "100000")),
    "--context": (("1", "5"), ("0", "4000", "100000")),
    "--classifier": (("", "4", "4,3"), ("0", "x", "4,,3", "9" * 12)),
    "--inputs": (("standardized", "centred"), ("raw",)),
    "--matrix": (("normal", "uniform"), ("zero",)),
    "--weight-decay": (("0", "1e-4"), ("-1", "nan", "x")),
    "--samples": (("1", "9"), ("0", "10000000000")),
    "--save-every": (("1", "2", "100"), ("0",)),
    "--keep": (("0", "1", "2"), ("-1",)),
    "--eval-every": (("1", "2"), ("0",)),
    "--device": (("cpu", "auto"), ("cuda", "mps", "tpu", "cuda:99")),
    "--threads": (("1",), ("0", "99999999999")),
    "--norms": (("none", "none,batch"), ("x", ",", "none,none")),
    "--lrs": (("1e-4", "1e-4,2e-4"), ("x", "1e-4,")),
    "--seeds": (("0", "0-1"), ("1-0", "x", "0-", "0-99999999999")),
    "--measure": (("ics", "theory,smoothness"), ("x", "ics,ics")),
    "--jobs": (("1",), ("0", "-1", "x")),
    "--dask": ((), ("nonsense", "tcp://127.0.0.1:1", "tcp://127.0.0.1:99999999")),
    "--study": (("study.toml",), ("absent.toml", "run", "run/config.json", "run/train.parquet")),
    "--wandb": ((), ("a/b/c", "?", "")),
    "--every": (("1", "2"), ("0",)),
    "--at": (_STEPS, ("9", "-1", "x", ",", "0,0", "1e300")),
    "--alphas": (("0.5", "0.5,1,2"), ("0", "-1", "nan", "x", ",", "1,1", "1e300")),
    "--batches": (("1", "2"), ("-1", "x")),
    "--curvature": (("hessian", "ggn"), ("fisher", "")),
    "--top": (("1", "3"), ("0", "-1", "x", "100000", "99999999999")),
    "--nodes": (("2", "5"), ("1", "0", "x", "99999999999")),
    "--vectors": (("1", "2"), ("0", "x", "99999999999")),
    "--points": (("1", "3"), ("0", "99999999999")),
    "--min-alpha": (("0.5", "0.1"), ("-1", "nan", "inf", "1e300")),
    "--max-alpha": (("1", "4"), ("0", "1e300", "nan")),
    "--layers": (("fc1", "fc1,fc2"), ("2", "x", "", ",", "fc1,fc1", "layers.fc1")),
    "--objective": (("batch", "train:2", "test"), ("train:0", "train:x", f"train:{'9' * 5000}", "tset")),
    "--directions": (("random", "pca", "top"), ("x",)),
    "--direction": (("random", "update", "gradient"), ("sideways", "pca")),
    "--dimensions": (("1", "2"), ("0", "3")),
    "--extent": (("0.5", "1e30"), ("0", "-1", "nan", "inf", "1e300")),
    "--weights": (("model.pt",), ("run/checkpoints/000002.pt", "absent", "run", "study.toml", "run/train.parquet")),
    "--name": (("a", "b.c"), ("a/b", "", "..", "-")),
    "--tag": (("a",), ("a b", "", "/")),
    "--log": (("new.log", "a.log"), (".", "", "absent/x.log")),
    "--csv": (("new.csv", "-"), (".", "run", "run/config.json", "other/ics.parquet", "", "run/config.json/x.csv")),
    "--units": (("0", "0,1"), ("99", "x", "-1", "1-0")),
    "--target-loss": (("1", "1e-3"), ("nan", "inf")),
    "--target-accuracy": (("0.5",), ("x", "2")),
    "--size": (("column", "page", "slide"), ("x", "")),
    "--height": (("4", "60"), ("0", "nan", "1", "1e9")),
    "--dpi": (("20", "72"), ("0", "2400", "-1", "1.5")),
    "--title": (("Mine", "", "$x^2$", "é"), (r"$\frac$",)),
    "--style": (("paper", "talk", "dark"), ("x", "")),
    "--figure": (("steps", "layers"), ("x", "")),
    "--paper": (("4c", "3,4a"), ("99", "x", "", ",")),
    "--format": (("md", "html"), ("pdf",)),
    "--output": (("new", "new.parquet", "f.png", "a/b/c.svg", "r.md"), (".", "run", "run/config.json", "", "study")),
}  # fmt: skip
#: Values that no option takes.
STRANGE = ["", " ", "-", "--", "0", "-1", "1e400", "nan", "9" * 30, "x", "é", "[bold]", "a,b", "/", "..", "\n", "'"]
_TABLES = [f"other/{kind}.parquet" for kind in ("train", *MEASURE)]
#: A custom norm, a custom problem, and two optimisers, one of which needs a closure.
MINE = """
from torch import nn, optim, randn
class Norm(nn.Identity):
    pass
def build(norm):
    model = nn.Sequential(nn.Linear(3, 2), norm(2), nn.Linear(2, 1))
    return model, nn.functional.mse_loss, (randn(9, 3), randn(9, 1))
def own(parameters):
    return optim.Adagrad(parameters, lr=1e-3)
def lbfgs(parameters):
    return optim.LBFGS(parameters)
"""
#: Command -> what it usually reads.
SOURCES = {
    "compare": ["run", "other", "study"],
    "plot": [*_TABLES, "compare.parquet"],
    "report": ["study"],
    "list": [".", "study", "run"],
    "show": [*_TABLES, "compare.parquet", "study/compare.claims.parquet"],
}
PATHS = ["run", "run/config.json", "run/checkpoints/000002.pt", "absent", "study", "study.toml", "images", *_TABLES]
#: Options that every line of a command with them has, so that no line takes long.
ALWAYS = {"--problem": "dln", "--steps": "2", "--samples": "9", "--width": "0.02", "--dimension": "3"}
SMALL = "--problem dln --depth 3 --dimension 3 --samples 9 --steps 2 --save-every 1"


@st.composite
def lines(draw: st.DrawFn) -> list[str]:
    """The words of a command line."""

    def chance(percent: int) -> bool:
        return draw(st.integers(0, 99)) < percent

    name = draw(st.sampled_from([*COMMANDS]))
    options = {p.opts[0]: p for p in COMMANDS[name].params if p.param_type_name == "option"}
    options.pop("--debug", None)  # shows the traceback of any error
    words = [name]
    if any(p.param_type_name == "argument" for p in COMMANDS[name].params) and chance(60):
        usual = SOURCES.get(name, ["run", "run/checkpoints/000002.pt"])
        words += draw(st.lists(st.sampled_from(usual if chance(85) else PATHS), min_size=1, max_size=2))
    chosen = draw(st.lists(st.sampled_from([*options]), max_size=4, unique=True))
    if len(words) == 1 and "--problem" in options:
        chosen = [*ALWAYS, *(option for option in chosen if option not in ALWAYS)]
    if name == "surface":
        words += ["--points", "3"]
    for option in chosen:
        if getattr(options[option], "is_flag", False):
            words.append(draw(st.sampled_from([*options[option].opts, *options[option].secondary_opts])))
            continue
        right, wrong = VALUES[option]
        if option in ALWAYS and chance(80):
            words += [option, ALWAYS[option]]
        else:
            kind = draw(st.integers(0, 19))
            words += [option, draw(st.sampled_from((kind < 16 and right) or (kind < 19 and wrong) or STRANGE))]
    return words


def prepare(folder: Path) -> Attempt:
    """A trial: twenty command lines a try. A fault is the shortest line that failed."""
    base = folder / "base"
    base.mkdir(parents=True)
    for norm, name in (("batch", "run"), ("none", "other")):
        done(
            f"train --problem dln --depth 3 --dimension 3 --samples 9 --norm {norm} --steps 2 --save-every 1 -o {name}",
            base,
        )
    for line in MEASURE.values():
        done(f"{line} run other", base)
    torch.save(torch.load(base / "run/checkpoints/000002.pt", weights_only=True)["model"], base / "model.pt")
    (base / "mine.py").write_text(MINE)
    done("compare run other", base)
    done(f"compare --norms none,l1 {SMALL} -o study", base)
    (base / "study.toml").write_text('norms = "none"\nproblem = "dln"\ndepth = 3\nsamples = 9\nsteps = 2\n')
    (base / "text.txt").write_text("To be, or not to be, that is the question.\n" * 9)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
    for i in range(16):
        path = base / f"images/{('train', 'test')[i // 8]}/{i % 2}/{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[i // 2]).save(path)

    def attempt(number: int) -> Try:
        ended = []

        @seed(number)
        @settings(
            deadline=None, max_examples=20, database=None, suppress_health_check=[*HealthCheck],
            phases=[Phase.generate, Phase.shrink],
        )  # fmt: skip
        @given(words=lines())
        def every_line_ends_in_a_result_or_one_line(words: list[str]) -> None:
            here = folder / "here"
            shutil.rmtree(here, ignore_errors=True)
            shutil.copytree(base, here)
            ended.append(command(words, here, seconds=30))
            fault = judge(ended[-1], "")
            assert not fault, f"{words}: {fault}"

        fault = ""
        try:
            every_line_ends_in_a_result_or_one_line()
        except AssertionError as error:
            fault = str(error)
        codes = [one.code for one in ended]
        slowest = max(one.seconds for one in ended)
        what = f"{len(codes)} lines, {codes.count(0)} of them results"
        return Try(what, "same result" if 0 in codes else "refused", fault, slowest, 0)

    return attempt
