"""Tables of every kind with invented rows, written as the commands of their kinds write them."""

from __future__ import annotations

import fake_tables
import numpy as np
import pandas as pd
from helpers import SCHEMAS

from bnsmooth_cli.config import resolve
from bnsmooth_cli.storage import tables

RUNS = {f"vgg-{norm}-lr0.1-seed0": resolve("vgg", norm=norm, data_digest=None).as_dict() for norm in ("none", "batch")}
SAID = {"version": "7.8.9", "runs": RUNS}


def surface(rough, noise):
    x, y = (grid.ravel() for grid in np.meshgrid(np.linspace(-1, 1, 3), np.linspace(-1, 1, 3)))
    frame = pd.DataFrame({"step": 20, "x": x, "y": y, "loss": 2 + rough * (x**2 + y**2)})
    frame.loc[4, "loss"] = np.nan
    return frame.assign(path_step=np.nan, x_share=0.6, y_share=0.2)


def by_layer(rough, noise):
    step, layer = (grid.ravel() for grid in np.meshgrid([0, 10], [1, 2], indexing="ij"))
    frame = pd.DataFrame({"step": step, "layer": layer, "layer_name": [f"conv{i}" for i in layer]})
    return frame.assign(grad_norm=1.5, beta=rough * noise.random(4), curvature=-1.0, sharpness=np.nan)


def summary(rough, noise):
    return pd.DataFrame({"figure": ["beta", "final_loss"], "seeds": 5, "diverged": 0, "median": rough, "low": np.nan})


def claims(rough, noise):
    said = {
        "title": "BatchNorm makes the loss smoother along the gradient, and much more besides",
        "verdict": "reproduced",
    }
    said |= {"part": "beta, batch / none", "rule": "< 1", "part_verdict": "inconclusive", "command": ""}
    return pd.DataFrame([{"claim": number, "seeds": 5, "median": 0.1, **said} for number in range(1, 12)])


ROWS = {
    **fake_tables.ROWS, "surface": surface, "smoothness-by-layer": by_layer, "compare-summary": summary,
    "compare-claims": claims,
}  # fmt: skip


def write(path, kind, rows=None, norms=("none", "batch"), **said):
    """Write a table as the command of its kind does; return its rows as they are read."""
    frame = fake_tables.make(ROWS[kind], norms=norms) if rows is None else rows
    columns = {name: frame.get(name, None if type_ == "list" else np.nan) for name, type_ in SCHEMAS[kind].items()}
    columns["settings"] = resolve("vgg").settings_text
    runs = {name: config for name, config in RUNS.items() if config["norm"] in norms}
    tables.write_table(path, kind, [pd.DataFrame(columns, frame.index)], {**SAID, "runs": runs, **said})
    return tables.read_table(path, kind)
