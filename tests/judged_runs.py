"""Runs whose tables have a known truth: in memory as the claims see them, and in folders."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from helpers import SCHEMAS

from bnsmooth_cli.config import resolve
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.runs import Run, write_config
from bnsmooth_cli.studies import verdicts
from bnsmooth_cli.studies.claims import CLAIMS
from bnsmooth_cli.studies.evidence import Record
from reproduction.scales import NORMS

STEPS = 3000
LRS = {"vgg": 0.1, "dln": 1e-6}
KINDS = ("smoothness", "landscape-random", "ics", "activations", "theory")
EARLY = {"vgg": 1500, "dln": 1000}
#: The norms of claim 3, and of claim 8.
NOISY = "none", "batch", "noisy-batch", "noisy-none"
SMOOTH = "none", "batch", "l1", "l2", "linf"
#: The scores of the best constant answer, which tables of runs record.
BASELINE = {"vgg": {"accuracy": 0.1}, "dln": {"loss": 100.0}}
PLAIN = {"accuracy": 0.7, "loss": 60.0, "rough": 100.0, "early": 1.0, "moves": 0.1, "ics": 1.0, "cosine": 0.5,
         "kurtosis": 0.0, "values": 131072.0, "first_loss": 100.0, "holds": True, "inequality": True,
         "condition": True, "reduced": 0.5, "saturated": False}  # fmt: skip
#: What each norm's runs are like where the paper is right.
RIGHT = {
    "none": PLAIN | {"cosine": 0.999, "early": 10.0},
    "batch": PLAIN | {"accuracy": 0.9, "loss": 2.0, "rough": 1.0, "moves": 0.01, "ics": 2.0, "cosine": 0.05},
}
_LP = RIGHT["batch"] | {"moves": 0.2, "kurtosis": 3.0}
RIGHT |= {
    "l1": _LP | {"loss": 1.0}, "l2": _LP, "linf": _LP, "lp:3": _LP,
    "noisy-batch": RIGHT["batch"] | {"moves": 0.3}, "noisy-none": PLAIN | {"accuracy": 0.1, "loss": 100.0},
}  # fmt: skip
#: And where nothing that it says is so.
WRONG = {
    "none": PLAIN | {"accuracy": 0.9, "loss": 2.0, "rough": 1.0, "moves": 0.3, "ics": 2.0, "cosine": -0.5},
    "batch": PLAIN
    | {"accuracy": 0.8, "early": 10.0, "cosine": 0.9, "holds": False, "inequality": False, "reduced": 2.0},
}
WRONG |= dict.fromkeys(("l1", "l2", "linf", "lp:3", "noisy-batch"), WRONG["batch"] | {"accuracy": 0.3, "loss": 90.0,
                                                                                     "rough": 1000.0})  # fmt: skip
WRONG |= {"noisy-none": WRONG["none"]}


def of(value, *where):
    """A value of a truth: a number, or a function of the step (and the layer)."""
    return value(*where) if callable(value) else np.full(len(where[0]), float(value))


def made(problem, norm, lr, seed, truth, kinds=KINDS, diverged=None, steps=STEPS, every=100, spread=0.01):
    """The rows of each kind of table that say what `truth` says of the norm, by `spread` different from seed to seed.

    A truth is as `PLAIN`: `accuracy` and `loss` are the last ones, or functions of the steps; `rough` and `saturated`
    may be functions of the steps, and `ics`, `cosine` and `moves` of steps and layers. A run that diverges ends there.
    """
    about = PLAIN | truth[norm]
    jitter = 1 + spread * seed
    lead = {"run": f"{norm}-{lr:g}-{seed}", "problem": problem, "norm": norm, "lr": lr, "seed": seed}
    end = steps if diverged is None else diverged
    step = np.arange(end + 1)
    share = step / steps
    if callable(about["loss"]):
        loss = about["loss"](step) * jitter
    else:  # a straight line on a logarithmic axis
        loss = about["first_loss"] * (about["loss"] * jitter / about["first_loss"]) ** share
    train = pd.DataFrame({**lead, "step": step, "loss": loss, "accuracy": np.nan, "grad_norm": 1.0, "test_loss": np.nan,
                          "test_accuracy": np.nan})  # fmt: skip
    if problem != "dln":
        last = about["accuracy"]
        curve = last(step) if callable(last) else 0.1 + (last - 0.1) * (1 - np.exp(-5 * share))
        train["accuracy"] = curve - spread * seed / 10
        train["test_accuracy"] = train["accuracy"].where(step % 50 == 0)

    at = np.arange(0, end + 1, every)
    rough = of(about["rough"], at) * np.where(at <= EARLY[problem], about["early"], 1.0) * jitter
    line = pd.DataFrame({**lead, "step": at, "loss_min": 0.0, "loss_max": rough, "predictiveness_max": rough,
                         "grad_norm": 1.0, "weight_norm": 1.0, "beta": rough,
                         "saturated": of(about["saturated"], at).astype(bool)})  # fmt: skip
    layers = pd.DataFrame(list(itertools.product(at, (2, 3))), columns=["step", "layer"])
    where = layers["step"].to_numpy(), layers["layer"].to_numpy()
    moved = np.where(where[0] == 0, np.nan, of(about["moves"], *where) * jitter)
    tables = {
        "train": train,
        "smoothness": line,
        "landscape-random": pd.DataFrame({**lead, "step": np.repeat(at, 2), "alpha": np.tile([0.5, 4.0], len(at)),
                                          "loss": np.stack([0 * rough, rough], 1).ravel(),
                                          "grad_distance": np.repeat(rough, 2)}),
        "ics": layers.assign(**lead, ics=of(about["ics"], *where) * jitter, grad_norm=1.0,
                             cosine=of(about["cosine"], *where)),
        "activations": layers.assign(**lead, unit=0, std=2.0, wasserstein=moved, mean_change=moved, var_change=moved,
                                     probe_mean_change=moved, floor_mean_change=moved / 2,
                                     kurtosis=about["kurtosis"], values=about["values"]),
        "theory": theory_rows(lead, about),
    }  # fmt: skip
    return {kind: tables[kind].reindex(columns=list(SCHEMAS[kind])) for kind in ("train", *kinds)}


def theory_rows(lead, about):
    """Four units for which the identities and the inequality hold or do not, and the gradient is reduced or not."""
    names = "fact C.1", "fact C.2", "4.1", "4.1 at y", "4.2", "4.2b", "4.3", "4.4", "4.5"
    rows = pd.DataFrame(list(itertools.product(names, range(4))), columns=["statement", "unit"])
    conditional = rows["statement"].isin(["4.2", "4.2b", "4.5"])
    met = pd.Series(of(about["condition"], rows["unit"]).astype(bool)).astype("boolean")
    holds = np.where(rows["statement"] == "4.2b", about["inequality"], about["holds"]).astype(bool)
    return rows.assign(**lead, step=0, layer=1, affine="identity", lhs=about["reduced"], rhs=1.0, grad_norm=1.0,
                       curvature=1.0, mean_fraction=0.1, output_fraction=0.2, holds=pd.array(holds, "boolean"),
                       condition=met.where(conditional))  # fmt: skip


def record(problem, norm, lr, seed, truth, kinds=KINDS, diverged=None, baseline=True, steps=STEPS, **more):
    """A run as the claims see it, with the tables that `made` makes."""
    tables = made(problem, norm, lr, seed, truth, kinds, diverged, steps, **more)

    def read(kind, columns=None):
        columns = list(columns or SCHEMAS[kind])
        return tables[kind][columns] if kind in tables else pd.DataFrame(columns=columns, dtype="float64")

    return Record(f"{norm}-{lr:g}-{seed}", problem, norm, lr, seed, steps, diverged,
                  BASELINE[problem] if baseline else {}, read, frozenset(tables))  # fmt: skip


def write_run(folder, problem, norm, lr, seed, truth, kinds=KINDS, diverged=None, baseline=True, steps=STEPS, **more):
    """A run folder with the tables that `made` makes."""
    config = resolve(problem, norm=norm, lr=lr, seed=seed, steps=steps)
    run = Run(folder / config.name, config)
    run.path.mkdir(parents=True)
    write_config(run)
    end = {"last_step": steps} if diverged is None else {"diverged_at": diverged}
    said = {"version": "0", "runs": {run.name: config.as_dict()}}
    for kind, frame in made(problem, norm, lr, seed, truth, kinds, diverged, steps, **more).items():
        for column, type_ in SCHEMAS[kind].items():
            if type_ == "string":
                known = {"run": run.name, "settings": config.settings_text}
                frame[column] = known.get(column) or frame[column].astype(object).fillna("x")
            elif type_ == "int64":
                frame[column] = frame[column].fillna(0).astype("int64")
            elif type_ == "list":
                frame[column] = [[0.0]] * len(frame)
        about_end = end | ({"baseline": BASELINE[problem]} if baseline else {}) if kind == "train" else {}
        tables.write_table(run.path / f"{kind}.parquet", kind, [frame], said | about_end)
    return run


def grid(problem, which, seeds=5, norms=NORMS, lrs=None, **more):
    """Runs of a grid as the claims see them."""
    return [
        record(problem, norm, lr, seed, which, **more)
        for norm, lr, seed in itertools.product(norms, lrs or (LRS[problem],), range(seeds))
    ]


def world(folder, problem, which, seeds=5, norms=NORMS, lrs=None, **more):
    """The run folders of a grid."""
    return [
        write_run(folder, problem, norm, lr, seed, which, **more)
        for norm, lr, seed in itertools.product(norms, lrs or (LRS[problem],), range(seeds))
    ]


def judge(records, *numbers):
    """The verdicts on the claims (on all of them, or those with these numbers): one row per part and learning rate."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verdicts, "CLAIMS", [claim for claim in CLAIMS if not numbers or claim.number in numbers])
        return verdicts.claims(records)


def verdicts_of(rows):
    return dict(rows[["claim", "verdict"]].drop_duplicates().itertuples(index=False))


def parts_of(rows, number, words="", lr=None):
    """The rows of a claim whose statistic has some words in its name."""
    rows = rows[(rows["claim"] == number) & rows["part"].str.contains(words, regex=False)]
    return rows if lr is None else rows[np.isclose(rows["lr"], lr)]


def part_of(rows, number, words, lr=None):
    rows = parts_of(rows, number, words, lr)
    assert len(rows) == 1, rows["part"].tolist()
    return rows.iloc[0]


def trained(kind, columns=None):
    """The train table of runs whose statistics are made up."""
    return pd.DataFrame({"step": [0], "loss": [1.0], "accuracy": [0.5], "test_accuracy": [0.5]})
