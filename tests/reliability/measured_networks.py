"""Trials of random networks: every measurement against plain autograd in float64, or a refusal that names the cause."""

from __future__ import annotations

import contextlib
import json
import math
import random
import re
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import networks
import numpy as np
import torch
from attempts import Attempt, Try
from hypothesis import HealthCheck, Phase, given, seed, settings
from networks import Recipe
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import bnsmooth_cli as bns
from bnsmooth_cli import kinds
from bnsmooth_cli.randomness import generator

ALPHAS, LR = (0.5, 2.0), 0.1
#: Type of the parameters -> the relative tolerance of every number.
TOLERANCE = {"float64": 1e-6, "float32": 5e-3, "mixed": 0.1, "bfloat16": 0.1, "float16": 0.1}
SHARPNESS, CURVATURE = 0.01, 1e-4
#: A matrix of differences whose asymmetry is above this share of it is no Hessian: the point is at a kink, or the
#: gradients are not those of the loss alone, as where a network runs a part without gradients. It is not compared.
ASYMMETRIC = 1e-3
#: What the message says if the theory alone is refused.
THEORY = "precision of its model|its output cannot be replaced"


class Plain:
    """The loss of a recipe's network as a function of its parameters, in float64 and by autograd's first derivative.

    Second derivatives are central differences of gradients, so that no second derivative of PyTorch is relied on.
    """

    def __init__(
        self, recipe: Recipe, model: nn.Module, batches: Sequence[Any] = (), training: bool | None = None
    ) -> None:
        """The network with the parameters and buffers of `model`; its loss is the mean over the batches."""
        self.model, self.loss, x, y = networks.build(recipe, plain=True)
        self.model.train(recipe["train"] if training is None else training)
        self.batches = [tuple(map(_double, batch)) for batch in batches or [(x, y)]]
        with torch.no_grad():
            for mine, theirs in (
                *zip(self.model.parameters(), model.parameters(), strict=True),
                *zip(self.model.buffers(), model.buffers(), strict=True),
            ):
                mine.copy_(theirs)
        self.buffers = [b.clone() for b in self.model.buffers()]
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        self.sizes = [p.numel() for p in self.parameters]
        self.theta = torch.cat([p.detach().reshape(-1) for p in self.parameters])

    def at(self, theta: Tensor) -> tuple[float, Tensor]:
        """The loss and the gradient."""
        losses, gradients = [], []
        for x, y in self.batches:
            with torch.no_grad():
                for p, piece in zip(self.parameters, theta.split(self.sizes), strict=True):
                    p.copy_(piece.view(p.shape))
                for b, before in zip(self.model.buffers(), self.buffers, strict=True):
                    b.copy_(before)
            with sdpa_kernel(SDPBackend.MATH):
                loss = self.loss(networks.call(self.model, x), y)
                slopes = torch.autograd.grad(loss, self.parameters, allow_unused=True)
            pairs = zip(self.parameters, slopes, strict=True)
            gradients.append(
                torch.cat([(torch.zeros_like(p) if g is None else g.to_dense()).flatten() for p, g in pairs])
            )
            losses.append(loss.item())
        return sum(losses) / len(losses), torch.stack(gradients).mean(0)

    def hessian(self, h: float = 1e-5) -> tuple[Tensor, float]:
        """The Hessian, and its asymmetry relative to its size."""
        rows = []
        for i in range(len(self.theta)):
            step = torch.zeros_like(self.theta)
            step[i] = h
            rows.append((self.at(self.theta + step)[1] - self.at(self.theta - step)[1]) / (2 * h))
        jacobian = torch.stack(rows)
        size = float(jacobian.norm())
        return (jacobian + jacobian.T) / 2, float((jacobian - jacobian.T).norm()) / size if size > 1e-7 else 0.0


def _double(values: Any) -> Any:
    if isinstance(values, dict):
        return {name: _double(value) for name, value in values.items()}
    if isinstance(values, tuple | list):
        return tuple(map(_double, values))
    return values.double() if values.is_floating_point() else values


def state(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that a measurement must leave as it was."""
    found: dict[str, Any] = {"random": (torch.get_rng_state().tolist(), str(np.random.get_state()))}
    if "beartype" not in sys.modules:  # its checks, which tests run with, draw
        found["Python's random"] = random.getstate()
    for name, p in model.named_parameters():
        found[f"parameter {name}"] = (id(p), p.requires_grad, p.dtype, p.detach().clone())
        found[f"gradient of {name}"] = (id(p.grad), None if p.grad is None else p.grad.to_dense().clone())
    for name, b in model.named_buffers():
        found[f"buffer {name}"] = (id(b), b.clone())
    for name, module in model.named_modules():
        found[f"mode of {name}"] = module.training
        found[f"hooks of {name}"] = [
            len(getattr(module, hooks, ())) for hooks in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        ]
        found[f"attributes of {name}"] = sorted(vars(module))
        found[f"flags of {name}"] = {k: v for k, v in vars(module).items() if isinstance(v, bool | int | float | str)}
    return found


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    def same(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor):
            return torch.equal(a.nan_to_num(), b.nan_to_num())
        return all(map(same, a, b)) and len(a) == len(b) if isinstance(a, tuple) else a == b

    return [name for name in sorted({*before, *after}) if not same(before.get(name), after.get(name))]


class Fault(Exception):
    """What is wrong with how a network was measured."""


RECIPE: Recipe = {}


def problem(norm: object) -> bns.Workload:
    """The network of RECIPE as a custom problem."""
    model, loss, x, y = networks.build(RECIPE)
    return bns.Workload(model, loss, (x, y), (x, y))


def judge(recipe: Recipe, folder: Path) -> str:
    """Measure the network of a recipe.

    Returns:
        "refused", "measured", "by differences" (of gradients, where PyTorch has no second derivative), "asymmetric" or
        "impossible": it does not run by itself.

    Raises:
        Fault: If a number is wrong, a refusal has no cause, or something of the user's has changed.
    """
    why, must = alone(recipe)
    torch.manual_seed(1)
    try:
        model, loss, x, y = networks.build(recipe)
    except RuntimeError:
        return "impossible"
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    before = state(model)
    refusal = networks.refusals(recipe)
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            point, tables = measure(recipe, model, lambda: loss(networks.call(model, x), y), folder)
    except bns.InputError as error:
        text = str(error)
        if "\n" in text:
            raise Fault(f"a message of several lines: {text}") from None
        if why:
            return "impossible"
        if not refusal:
            raise Fault(f"refused without need: {text}") from None
        if not re.search(refusal, text):
            raise Fault(f"refused for another reason ({refusal}): {text}") from None
        outcome = "refused"
    except Exception as error:
        lines = traceback.extract_tb(error.__traceback__)
        ours = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in lines if "bnsmooth_cli" in f.filename]
        kind = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise Fault(f"traceback: {kind} [{ours[-1] if ours else ''}]{why and f' (alone: {why})'}") from error
    else:
        if must:
            raise Fault("measured, though it draws at random")
        if why and recipe["type"] in ("float64", "float32"):  # others are measured in float32
            raise Fault(f"measured, and does not run alone: {why}")
        outcome = compare(recipe, point, tables, [w for w in caught if w.category is bns.Remark])
    if recipe["way"] != "problem" and (different := changed(before, state(model))):
        raise Fault(f"changed: {', '.join(different[:6])}")
    return outcome


def alone(recipe: Recipe) -> tuple[str, bool]:
    """Why the network cannot make a step by itself (empty if it can), and whether its loss depends on random draws."""
    losses = []
    try:
        for number in range(2):
            model, loss, x, y = networks.build(recipe)
            torch.manual_seed(number)
            value = loss(networks.call(model, x), y)
            value.backward()
            losses.append(value.item())
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:100]}", False
    return "", not math.isclose(*losses, rel_tol=1e-3)


def measure(recipe: Recipe, model: nn.Module, loss: Any, folder: Path) -> tuple[bns.Point, dict[str, Any]]:
    around = {"no_grad": torch.no_grad, "inference": torch.inference_mode}.get(recipe["way"], contextlib.nullcontext)
    if recipe["way"] == "problem":
        global RECIPE
        RECIPE = recipe
        run = bns.train(
            problem, "none", output=folder / "run", device="cpu", steps=1, save_every=1, eval_every=1, lr=LR,
            batch_size=networks.SAMPLES, force=True,
        )  # fmt: skip
        point = bns.load_point(run, 1)
    else:
        with around():
            point = bns.Point.of(model, loss, lr=LR, seed=3)
    with around():
        tables = {
            "landscape": bns.landscape(point, ALPHAS),
            "smoothness": bns.smoothness(point, ALPHAS),
            "ics": bns.ics(point),
            "by layer": bns.smoothness_by_layer(point, ALPHAS),
            "surface": bns.surface(point, points=3),
        }
        if recipe["way"] == "problem":
            for objective in ("train:2", "test"):
                tables[objective] = bns.landscape(point, ALPHAS, objective=objective)
        if point.structure.sites:
            tables["activations"] = bns.activations(point)
            try:
                tables["theory"] = bns.theory(point, units=[0])
            except bns.InputError as error:
                if not re.search(THEORY, str(error)):
                    raise
    return point, tables


def compare(recipe: Recipe, point: bns.Point, tables: dict[str, Any], remarks: list[Any]) -> str:
    """Compare every number; Fault for the first that is wrong."""
    close = Close(recipe["type"])
    if recipe["way"] == "problem":
        batches = {
            "batch": [(point.inputs, point.targets)],
            "train:2": [point.problem.batch(step) for step in range(2)],
            "test": [*point.problem.test_batches()],
        }
        for objective in ("train:2", "test"):
            training = None if objective == "train:2" else False
            line(Plain(recipe, point.model, batches[objective], training), tables[objective], close)
        plain = Plain(recipe, point.model, batches["batch"])
    else:
        plain = Plain(recipe, point.model)
    losses = line(plain, tables["landscape"], close)
    _, g = losses[0.0]
    size = float(g.norm())
    (row,) = tables["smoothness"].to_dict("records")
    if size > 1e-9:
        beta = max(float((g - losses[alpha][1]).norm()) / (alpha * LR * size) for alpha in ALPHAS)
        close("smoothness beta", row["beta"], beta, 1 / (ALPHAS[0] * LR))
    outcome = "measured"
    hessian, asymmetry = plain.hessian()
    compared = asymmetry <= ASYMMETRIC
    if not compared:
        outcome = "asymmetric"
    missing = [w for w in remarks if "no curvature" in str(w.message)]
    if size > 1e-9 and compared:
        if math.isnan(row["curvature"]) or math.isnan(row["sharpness"]):
            if not missing:
                raise Fault(f"smoothness: curvature {row['curvature']}, sharpness {row['sharpness']} without a remark")
            outcome = "no second derivative"
        else:
            if any("differences of gradients, to" in str(w.message) for w in remarks):
                outcome = "by differences"
            bends(close, "smoothness", row, g, hessian)
    layers(plain, point, tables, close, g, hessian if compared else None, bool(missing))
    units(plain, point, tables, close)
    for row, there in zip(tables["surface"].to_dict("records"), grid(plain, point), strict=True):
        close(f"surface at {row['x']:g}, {row['y']:g}", row["loss"], there)
    return outcome


def line(plain: Plain, table: Any, close: Close) -> dict[float, tuple[float, Tensor]]:
    """Compare the rows of `landscape`. Returns the losses and gradients by the step length."""
    start, g = plain.at(plain.theta)
    found, size = {0.0: (start, g)} | {a: plain.at(plain.theta - a * LR * g) for a in ALPHAS}, float(g.norm())
    for row in table.to_dict("records"):
        loss, there = found[row["alpha"]]
        close("landscape loss", row["loss"], loss)
        close("landscape grad_norm", row["grad_norm"], float(there.norm()), size)
        close("landscape grad_distance", row["grad_distance"], float((g - there).norm()), size)
        if size > 1e-9 and float(there.norm()) > 1e-9:
            close("landscape grad_cosine", row["grad_cosine"], float(g @ there / g.norm() / there.norm()), 1.0)
    return found


def bends(close: Close, where: str, row: dict[str, float], g: Tensor, hessian: Tensor) -> None:
    values = torch.linalg.eigvalsh(hessian)
    sharpness = float(values[values.abs().argmax()])
    scale = max(abs(sharpness), 1e-4)
    close(f"{where} curvature", row["curvature"], float(g @ hessian @ g / (g @ g)), scale, CURVATURE)
    both = abs(abs(float(values[0])) - abs(float(values[-1]))) < 0.02 * scale
    found = abs(row["sharpness"]) if both else row["sharpness"]
    close(f"{where} sharpness", found, abs(sharpness) if both else sharpness, scale, SHARPNESS)


def layers(
    plain: Plain,
    point: bns.Point,
    tables: dict[str, Any],
    close: Close,
    g: Tensor,
    hessian: Tensor | None,
    missing: bool,
) -> None:
    """ICS and the smoothness by layer, for the layers that the point has."""
    names = [name for name, p in point.model.named_parameters() if p.requires_grad]
    places = dict(zip(names, torch.arange(len(g)).split(plain.sizes), strict=True))
    given = [name for _, parameters in point.layers for name in parameters]
    if sorted(given) != sorted(names):
        raise Fault(f"the layers hold {sorted(given)}, and the model {sorted(names)}")
    updated, mixed = plain.theta - LR * g, plain.theta.clone()
    rows = (tables[name].to_dict("records") for name in ("ics", "by layer"))
    for (name, parameters), ics, row in zip(point.layers, *rows, strict=True):
        where = torch.cat([places[p] for p in parameters])
        mine, there = g[where], plain.at(mixed)[1][where]
        mixed[where] = updated[where]
        size, scale = float(mine.norm()), max(float(mine.norm()), 1e-3 * float(g.norm()))
        close(f"ics of {name}: grad_norm", ics["grad_norm"], size, scale)
        close(f"ics of {name}: grad_norm_updated", ics["grad_norm_updated"], float(there.norm()), scale)
        close(f"ics of {name}: ics", ics["ics"], float((mine - there).norm()), scale)
        close(f"by layer, {name}: grad_norm", row["grad_norm"], size, scale)
        if size < 1e-6 * float(g.norm()) or size < 1e-9:
            continue
        if float(there.norm()) > 1e-6 * size:
            close(f"ics of {name}: cosine", ics["cosine"], float(mine @ there / mine.norm() / there.norm()), 1.0)
        betas = []
        for alpha in ALPHAS:
            moved = plain.theta.clone()
            moved[where] -= alpha * LR * mine
            betas.append(float((plain.at(moved)[1][where] - mine).norm()) / (alpha * LR * size))
        close(f"by layer, {name}: beta", row["beta"], max(betas), 1 / (ALPHAS[0] * LR))
        if hessian is None:
            continue
        if math.isnan(row["curvature"]) or math.isnan(row["sharpness"]):
            if not missing:
                raise Fault(f"by layer, {name}: curvature {row['curvature']}, {row['sharpness']} without a remark")
        else:
            bends(close, f"by layer, {name}:", row, mine, hessian[where][:, where])


def units(plain: Plain, point: bns.Point, tables: dict[str, Any], close: Close) -> None:
    """The moments of the inputs of non-linearities, and the statements of the theory that are proved."""
    names = {module: re.sub(r"\.?_orig_mod", "", name) for name, module in point.model.named_modules()}
    seen: dict[str, Tensor] = {}

    def keep(name: str, output: Tensor) -> None:
        seen.setdefault(name, output.detach().clone())

    handles = []
    for site in point.structure.sites:
        if any(isinstance(norm, networks.Own) and norm.kind != "norm" for norm in site.norms):
            raise Fault(f"{site.name}: a module with an activation inside counts as its norm")
        module = plain.model.get_submodule(names[[site.linear, *site.norms][-1]])
        handles.append(module.register_forward_hook(lambda m, x, y, name=site.name: keep(name, y)))
    plain.at(plain.theta)
    for handle in handles:
        handle.remove()
    sites = {site.name: site for site in point.structure.sites}
    for row in tables["activations"].to_dict("records") if sites else ():
        values = sites[row["layer_name"]].by_unit(seen[row["layer_name"]])[:, row["unit"]]
        scale = float(values.abs().max())
        close(f"activations of {row['layer_name']}: mean", row["mean"], float(values.mean()), scale)
        close(f"activations of {row['layer_name']}: std", row["std"], float(values.std(unbiased=False)), scale)
    if "theory" in tables:
        rows = tables["theory"]
        met = (rows["statement"] != "4.5") | rows["condition"].fillna(True)
        above_rounding = rows[["lhs", "rhs"]].abs().max(axis=1) > 1e-12
        failed = rows[rows["statement"].isin(kinds.PROVED) & met & above_rounding & ~rows["holds"].fillna(True)]
        if len(failed):
            raise Fault(f"theory: {failed[['statement', 'layer_name', 'lhs', 'rhs']].to_dict('records')[0]}")


def grid(plain: Plain, point: bns.Point) -> Iterator[float]:
    """The losses on the grid of `surface`, three points along each of two filter-normalised directions."""
    draws = generator(point.config.seed, "surface", point.step)
    axes = []
    for _ in range(2):
        pieces = []
        for p, piece in zip(plain.parameters, plain.theta.split(plain.sizes), strict=True):
            d, weight = torch.randn(p.shape, generator=draws).double(), piece.view(p.shape)
            moved = torch.zeros_like(d)
            for own in filters(plain.model, p):
                moved[own] = d[own] * weight[own].norm() / d[own].norm()
            pieces.append(moved.reshape(-1))
        axes.append(torch.cat(pieces))
    for x in (-1, 0, 1):
        for y in (-1, 0, 1):
            yield plain.at(plain.theta + x * axes[0] + y * axes[1])[0]


def filters(model: nn.Module, p: Tensor) -> Iterator[tuple[slice | int, ...]]:
    """Where the filters of a parameter are: all weights of one output. Norms, biases and the lengths of weight
    normalisation have none."""
    name = next(name for name, own in model.named_parameters() if own is p)
    owner = next(m for m in model.modules() if any(own is p for own in m.parameters(recurse=False)))
    if p.dim() < 2 or isinstance(owner, nn.LayerNorm) or name.endswith(("_g", "original0")):
        return
    transposed = isinstance(owner, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    if transposed and owner._parameters.get("weight") is p:
        inputs = owner.in_channels // owner.groups
        for group in range(owner.groups):
            for output in range(p.shape[1]):
                yield slice(group * inputs, (group + 1) * inputs), output
    else:
        for output in range(len(p)):
            yield (output,)


class Close:
    """Checks that numbers agree, to the tolerance of a type."""

    def __init__(self, kind: str) -> None:
        self.tolerance = TOLERANCE[kind]

    def __call__(self, what: str, found: float, right: float, scale: float = 0.0, tolerance: float = 0.0) -> None:
        if math.isfinite(right):
            allowed = max(self.tolerance, tolerance) * max(abs(right), scale, 1e-7)
            wrong = not abs(found - right) <= allowed
        else:
            wrong = math.isfinite(found)
        if wrong:
            raise Fault(f"{what}: {found:.8g}, and {right:.8g} is right")


def prepare(folder: Path) -> Attempt:
    """A trial: twenty networks a try. A fault is the simplest recipe that failed."""
    folder.mkdir(parents=True, exist_ok=True)

    def attempt(number: int) -> Try:
        outcomes: list[str] = []
        start = time.perf_counter()

        @seed(number)
        @settings(
            deadline=None, max_examples=20, database=None, suppress_health_check=[*HealthCheck],
            phases=[Phase.generate, Phase.shrink],
        )  # fmt: skip
        @given(recipe=networks.recipes())
        def every_network_is_measured_right_or_refused(recipe: Recipe) -> None:
            try:
                outcomes.append(judge(recipe, folder))
            except Fault as fault:
                raise AssertionError(f"{fault}: {json.dumps(recipe)}") from fault

        fault = ""
        try:
            every_network_is_measured_right_or_refused()
        except AssertionError as error:
            fault = str(error)
        what = ", ".join(f"{outcomes.count(name)} {name}" for name in sorted({*outcomes}))
        seconds = (time.perf_counter() - start) / max(1, len(outcomes))
        return Try(what, "same result" if "measured" in outcomes else "refused", fault, seconds, 0)

    return attempt


if __name__ == "__main__":  # the recipe of a fault; what it leaves out has a default
    sys.modules["measured_networks"] = sys.modules["__main__"]
    print(judge(networks.DEFAULTS | json.loads(sys.argv[1]), Path("torture")))
