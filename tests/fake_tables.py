"""Invented tables of every kind that is drawn. A norm's roughness decides their values."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

ROUGHNESS = {"none": 30.0, "batch": 1.0, "l1": 1.3, "l2": 1.1, "linf": 2.0}
NORMS = tuple(ROUGHNESS)


def make(
    rows: Callable[[float, np.random.Generator], pd.DataFrame],
    problem: str = "vgg",
    norms: Sequence[str] = NORMS,
    lrs: Sequence[float] = (0.1,),
    seeds: Sequence[int] = (0,),
) -> pd.DataFrame:
    """One table over a grid of runs. `rows` makes the columns of a run from the roughness of its norm."""
    tables = []
    for norm, lr, seed in ((norm, lr, seed) for norm in norms for lr in lrs for seed in seeds):
        table = rows(ROUGHNESS.get(norm, 3.0), np.random.default_rng(seed))
        run = {
            "run": f"{problem}-{norm}-lr{lr:g}-seed{seed}",
            "problem": problem,
            "norm": norm,
            "lr": lr,
            "seed": seed,
        }
        tables.append(pd.DataFrame({**run, **{name: table[name] for name in table}}))
    return pd.concat(tables, ignore_index=True)


def vgg_training(rough: float, noise: np.random.Generator, steps: int = 200) -> pd.DataFrame:
    step = np.arange(steps)
    accuracy = 0.1 + 0.75 * (1 - np.exp(-step / 40 / rough**0.3)) + noise.normal(0, 0.02, steps)
    tested = np.where(step % 20 == 0, accuracy - 0.04, np.nan)
    frame = pd.DataFrame({"step": step, "loss": 2.4 - 2.3 * accuracy, "accuracy": accuracy})
    return frame.assign(grad_norm=rough, test_loss=2.4 - 2 * tested, test_accuracy=tested)


def dln_training(rough: float, noise: np.random.Generator) -> pd.DataFrame:
    step = np.arange(200)
    loss = 1e6 * np.exp(-step / 10 / rough**0.3) + noise.random()
    return pd.DataFrame({"step": step, "loss": loss, "grad_norm": 1.0}).assign(
        accuracy=np.nan, test_loss=np.nan, test_accuracy=np.nan
    )


def landscape(rough: float, noise: np.random.Generator, steps: Sequence[int] = range(0, 310, 10)) -> pd.DataFrame:
    step, alpha = (grid.ravel() for grid in np.meshgrid(list(steps), [0, 0.5, 1, 2, 4], indexing="ij"))
    frame = pd.DataFrame({"step": step, "alpha": alpha, "step_size": 0.1 * alpha, "distance": 0.1 * alpha})
    change = rough * alpha * np.exp(-step / 200) * noise.uniform(0.8, 1.2, len(step))
    return frame.assign(loss=2 + 0.01 * change, grad_norm=rough, grad_distance=change, grad_cosine=0.5)


def smoothness(rough: float, noise: np.random.Generator) -> pd.DataFrame:
    step = np.arange(0, 310, 10)
    level = rough * noise.uniform(0.8, 1.2, len(step))
    names = ("loss", "grad_norm", "loss_min", "loss_max", "predictiveness_min", "predictiveness_max")
    frame = pd.DataFrame({"step": step, **dict.fromkeys((*names, "lipschitz", "beta"), level)})
    signed = level * noise.choice([-1, 1], len(step))
    return frame.assign(curvature=signed, sharpness=signed, critical_alpha=np.nan)


def stability(rough: float, noise: np.random.Generator, optimizer: str = "sgd", lr: float = 0.1) -> pd.DataFrame:
    """Smoothness at the edge of stability: with SGD at a fixed learning rate, or with Adam, warm-up and decay."""
    frame = smoothness(rough, noise)
    over, near = np.linspace(0, 1, len(frame)), noise.uniform(0.9, 1.1, len(frame))
    rate = np.full(len(frame), lr)
    if optimizer == "adam":
        rate = lr * np.minimum(1, (over + 0.05) * 5) * (1 + np.cos(np.pi * over.clip(max=0.95))) / 2
    edge = (2 if optimizer == "sgd" else 38) / rate
    sharp = edge * np.minimum(1, 0.3 + 2 * over) * near
    frame = frame.assign(step_lr=rate, threshold=edge, critical_lr=rate * near * 1.5, batch_sharpness=2 / rate * near,
                         batch_sharpness_error=0.1, preconditioned=np.nan)  # fmt: skip
    if optimizer == "sgd":
        return frame.assign(sharpness=sharp)
    frame["preconditioned"] = sharp
    frame.loc[0, ["preconditioned", "threshold"]] = np.nan  # before the first step
    return frame


def smoothness_by_layer(
    rough: float, noise: np.random.Generator, steps: Sequence[int] = (0, 100, 300), layers: int = 8
) -> pd.DataFrame:
    step, layer = (grid.ravel() for grid in np.meshgrid(list(steps), range(1, layers + 1), indexing="ij"))
    level = rough / layer * noise.uniform(0.8, 1.2, len(step))
    frame = pd.DataFrame({"step": step, "layer": layer, "layer_name": [f"conv{i}" for i in layer]})
    return frame.assign(grad_norm=level, beta=level, curvature=-level, sharpness=-level)


def surface(rough: float, noise: np.random.Generator, step: int = 300, path: bool = True) -> pd.DataFrame:
    """A bowl on 9 x 9 points, with waves of the height of the roughness. The path spirals to its centre."""
    x, y = (grid.ravel() for grid in np.meshgrid(np.linspace(-1, 1, 9), np.linspace(-1, 1, 9), indexing="ij"))
    loss = 0.5 + x**2 + 0.5 * y**2 + 0.02 * rough * (1 + np.sin(7 * x) * np.cos(5 * y))
    frame = pd.DataFrame({"step": step, "x": x, "y": y, "loss": loss, "path_step": np.nan})
    if not path:
        return frame.assign(x_share=np.nan, y_share=np.nan)
    steps = np.arange(0, step + 1, 30)
    left = 0.9 * (1 - steps / max(step, 1))
    there = {"x": -left * np.cos(3 * left), "y": left * np.sin(3 * left), "loss": 1.0, "path_step": steps}
    shares = {"x_share": 0.871, "y_share": 0.1 + 0.02 * noise.random()}
    return pd.concat([frame, pd.DataFrame({"step": step, **there})], ignore_index=True).assign(**shares)


def surface_line(rough: float, noise: np.random.Generator, steps: Sequence[int] = (300,)) -> pd.DataFrame:
    step, x = (grid.ravel() for grid in np.meshgrid(list(steps), np.linspace(-1, 1, 21), indexing="ij"))
    loss = 0.5 + (1 + 0.1 * rough) * x**2 + 1e-3 * noise.random(len(x))
    frame = pd.DataFrame({"step": step, "x": x, "y": np.nan, "loss": loss, "path_step": np.nan})
    return frame.assign(x_share=np.nan, y_share=np.nan)


def spectrum(rough: float, noise: np.random.Generator, count: int = 10) -> pd.DataFrame:
    """A bulk and a few large eigenvalues, which grow."""
    step = np.arange(0, 310, 30)
    level = rough * np.linspace(0.5, 1, len(step)) * noise.uniform(0.9, 1.1, len(step))
    values = [[10 * size / (place + 1) for place in range(count)] for size in level]
    residuals = [[1e-3 * size] * (count + 1) for size in level]
    frame = pd.DataFrame({"step": step, "step_lr": 0.1, "threshold": 20.0, "parameters": 1000, "largest": 10 * level})
    frame = frame.assign(smallest=-level, eigenvalues=values, residuals=residuals, trace=40 * level, trace_error=level)
    frame = frame.assign(top_share=0.7, effective_rank=4 * noise.uniform(0.9, 1.1, len(step)))
    return frame.assign(products="double backward", product_error=np.nan, product_count=60)


def spectrum_by_layer(rough: float, noise: np.random.Generator, layers: int = 8) -> pd.DataFrame:
    frames = []
    for layer in range(1, layers + 1):
        frame = spectrum(rough / layer, noise, count=2).drop(columns=["step_lr", "threshold"])
        frames.append(frame[frame["step"].isin([0, 300])].assign(layer=layer, layer_name=f"conv{layer}"))
    return pd.concat(frames, ignore_index=True)


def spectral_density(rough: float, noise: np.random.Generator) -> pd.DataFrame:
    step, vector, rank = (grid.ravel() for grid in np.meshgrid((0, 150, 300), range(2), range(40), indexing="ij"))
    node = rough * np.sinh((rank - 15) / 6) * (1 + step / 600) + 1e-3 * noise.random(len(step))
    weight = np.exp(-((rank - 15.0) ** 2) / 8)
    frame = pd.DataFrame({"step": step, "vector": vector, "rank": rank, "node": node})
    return frame.assign(weight=weight / weight.sum() * 6)


def ics(rough: float, noise: np.random.Generator, layers: int = 25) -> pd.DataFrame:
    step, layer = (grid.ravel() for grid in np.meshgrid(range(0, 310, 10), range(1, layers + 1), indexing="ij"))
    shift = np.where(layer == 1, 0.0, np.exp(-step / 30) * layer / rough)
    frame = pd.DataFrame({"step": step, "layer": layer, "layer_name": [f"linear{i}" for i in layer], "ics": shift})
    return frame.assign(grad_norm=1.0, grad_norm_updated=1.0, cosine=noise.uniform(-1, 1, len(step)))


def activations(rough: float, noise: np.random.Generator, layers: int = 3) -> pd.DataFrame:
    grid = np.meshgrid(range(0, 310, 10), range(1, layers + 1), (4, 7), indexing="ij")
    step, layer, unit = (axis.ravel() for axis in grid)
    probabilities = (np.arange(100) + 0.5) / 100
    width = np.sqrt(rough) * noise.uniform(0.9, 1.1, len(step))
    quantiles = [scale * np.log(probabilities / (1 - probabilities)) for scale in width]
    frame = pd.DataFrame({"step": step, "layer": layer, "layer_name": [f"conv{i}" for i in layer], "unit": unit})
    moved = np.where(step == 0, np.nan, noise.random(len(step)))
    ends = {"q01": [q[1] for q in quantiles], "q99": [q[-2] for q in quantiles]}
    return frame.assign(mean=0.0, std=width, sigma=2 * width, wasserstein=moved, **ends, quantiles=quantiles)


def theory(rough: float, noise: np.random.Generator, layers: int = 4) -> pd.DataFrame:
    statements = ["4.1", "4.1 at y", "4.2", "4.2b", "4.4", "4.5"]
    grid = np.meshgrid(range(0, 310, 50), range(1, layers + 1), range(3), range(len(statements)), indexing="ij")
    step, layer, unit, which = (axis.ravel() for axis in grid)
    statement = np.array(statements)[which]
    rhs = (
        rough
        * 10 ** noise.uniform(-4, 4, len(step))
        * np.where(np.char.startswith(statement, "4.2"), noise.choice([-1, 1], len(step)), 1)
    )
    lhs = np.where(statement == "4.1 at y", rhs * noise.uniform(0.1, 3, len(step)), rhs)
    frame = pd.DataFrame({"step": step, "layer": layer, "layer_name": [f"conv{i}" for i in layer], "unit": unit})
    frame = frame.assign(statement=statement, affine="identity", lhs=lhs, rhs=rhs, holds=lhs <= rhs, condition=rhs > 0)
    signed = {name: noise.choice([-1.0, 1.0], len(step)) for name in ("alignment", "curvature")}
    fractions = {"mean_fraction": 1e-34, "output_fraction": 1e-3 * noise.random(len(step))}
    return frame.assign(sigma=rough, **fractions, **signed)


def compared(rough: float, noise: np.random.Generator) -> pd.DataFrame:
    metrics = ("loss_range", "predictiveness", "lipschitz", "beta", "curvature", "sharpness")
    accuracy = 0.85 - 0.002 * rough + noise.normal(0, 0.001)
    row = {"steps": 200, "diverged_at": np.nan, "final_loss": 0.1 * rough, "final_test_accuracy": accuracy}
    row |= {
        "target_loss": 0.5,
        "steps_to_loss": 50 * rough,
        "target_accuracy": 0.8,
        "steps_to_accuracy": 60 * rough,
    }
    return pd.DataFrame([row | dict.fromkeys(metrics, rough)])


ROWS = {
    "train": vgg_training,
    "landscape": landscape,
    "smoothness": smoothness,
    "landscape-update": lambda rough, noise: landscape(rough, noise).assign(direction="update"),
    "smoothness-update": lambda rough, noise: stability(rough, noise, "adam").assign(direction="update"),
    "landscape-random": lambda rough, noise: landscape(rough, noise).assign(direction="random"),
    "smoothness-random": lambda rough, noise: smoothness(rough, noise).assign(direction="random"),
    "surface": surface,
    "smoothness-by-layer": smoothness_by_layer,
    "spectrum": spectrum,
    "spectrum-ggn": lambda rough, noise: spectrum(rough, noise).assign(smallest=0.0, beside=-rough),
    "spectrum-by-layer": spectrum_by_layer,
    "spectrum-density": spectral_density,
    "spectrum-ggn-density": spectral_density,
    "ics": ics,
    "activations": activations,
    "theory": theory,
    "compare": compared,
}

#: The same kinds; the surface is along one direction, so that every figure draws a norm as a line of its colour.
LINES = {**ROWS, "surface": surface_line}
