"""The registry of tables: each kind's columns, the measurement that makes it and the figures that draw it.

A new kind is one entry of `KINDS`. The commands, their help, studies, reports, exports and docs/reference.md read this
registry. It imports neither torch nor pandas: measurements and figures are named as "module:attribute" and imported
when they are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from bnsmooth_cli.errors import unknown

Type = Literal["string", "int64", "double", "bool", "list"]

#: The options of measurements that choose rows, and change no number in them.
SELECTING: Final = ("layers", "units")


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        type: Its Arrow type; "list" is a list of doubles.
        text: Its description in the documentation.
        nullable: Whether NaN means null: not measured, or undefined in this row. In other columns, NaN is a measured
            value: an overflow.
        added: Whether tables of earlier versions lack it; there, it reads as null, or as `SETTINGS` says.
    """

    type: Type
    text: str
    nullable: bool = True
    added: bool = False


@dataclass(frozen=True)
class Drawing:
    """A figure of a kind of table.

    Attributes:
        name: Its name, for `plot --figure`.
        panels: "module:function" in `figures` that turns rows into panels.
        draws: The paper's figures that it corresponds to, for the help of `plot`.
    """

    name: str
    panels: str
    draws: str = ""


@dataclass(frozen=True)
class Size:
    """A size of figures that has a name.

    Attributes:
        width: The width in inches.
        dpi: The pixels per inch.
        text: What it is for, for help texts.
    """

    width: float
    dpi: int
    text: str


SIZES: Final = {
    "column": Size(3.25, 300, "one column of a paper"),
    "page": Size(6.75, 300, "both columns"),
    "slide": Size(10.0, 150, "a slide"),
}
#: Style of figures -> what is special about it, for help texts.
STYLES: Final = {"paper": "the default", "talk": "larger text and wider lines", "dark": "on a dark background"}


@dataclass(frozen=True)
class Section:
    """How a report shows a kind.

    Attributes:
        title: The section's title.
        reading: How to read the figure.
        metrics: The metrics that it quotes.
        claims: The numbers of the claims that the figure illustrates.
    """

    title: str
    reading: str
    metrics: tuple[str, ...]
    claims: tuple[int, ...]


@dataclass(frozen=True)
class Kind:
    """A kind of table.

    Attributes:
        name: The kind's name, in the metadata of its tables and in file names.
        command: The command that writes it.
        row: What one row describes, for the documentation.
        columns: Its columns, by name and in order.
        measurement: "module:attribute" of the `Measurement` in `measures` that makes its rows; None if another command
            makes them.
        figures: Its figures, the default one first; none if it is not drawn.
        studied: Whether `--measure` accepts it in a study.
        tensorboard: Whether its numbers can be shown over the training steps in TensorBoard.
        section: How the report shows it; None if it does not.
        compared: Whether `compare` computes it from several runs.
        direction: The direction of the line in its column `direction`; empty without this column.
        additions: The options that fill columns which are null without them. A table that has them answers a request
            without them; a table without them is measured again. A table that has them with another value is another
            table.
    """

    name: str
    command: str
    row: str
    columns: Mapping[str, Column]
    measurement: str | None = None
    figures: tuple[Drawing, ...] = ()
    studied: bool = False
    tensorboard: bool = False
    section: Section | None = None
    compared: bool = False
    direction: str = ""
    additions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Metric:
    """A number that `compare` records for each run, in a column of its table, and summarises over seeds.

    Attributes:
        name: The column's name.
        text: Its description in the documentation.
        kind: The kind of table that it is computed from.
        words: Its name in the report; empty if the report does not quote it.
        target: For a metric `steps_to_...`, the description of the column `target_...` before it; otherwise empty.
        has_ratio: Whether its ratio to the `none` run is recorded too.
        added: Whether tables of earlier versions lack it, as in `Column`.
    """

    name: str
    text: str
    kind: str
    words: str = ""
    target: str = ""
    has_ratio: bool = True
    added: bool = False


METRICS: Final = (
    Metric("final_loss", "last training loss; with minibatches, a mean over 50 steps", "train",
           "Last training loss"),
    Metric("best_loss", "smallest training loss, averaged in the same way", "train"),
    Metric("mean_log_loss", "natural logarithm of the training loss, averaged over the run; after a divergence, of the "
           "loss of the best constant answer, or infinite if that is unknown", "train",
           "Logarithm of the loss, averaged over the run", has_ratio=False, added=True),
    Metric("mean_accuracy", "training accuracy, averaged over the run; after a divergence, that of the best constant "
           "answer", "train",
           "Training accuracy, averaged over the run", added=True),
    Metric("final_test_accuracy", "test accuracy: mean of the last five evaluations in the last third of the run; "
           "null if the run diverged", "train", "Last test accuracy"),
    Metric("best_test_accuracy", "best test accuracy", "train"),
    Metric("steps_to_loss", "first step at or below `target_loss`; null if never", "train",
           "Steps to none's last loss", target="`--target-loss`, or the `none` run's last loss"),
    Metric("steps_to_accuracy", "first step at or above `target_accuracy`; null if never", "train",
           "Steps to none's last accuracy", target="`--target-accuracy`, or the `none` run's last test accuracy"),
    Metric("loss_range", "`loss_max` - `loss_min` on the line, median over the run", "smoothness",
           "Range of the loss"),
    Metric("predictiveness", "`predictiveness_max` on the line, median over the run", "smoothness",
           "Largest change of the gradient"),
    Metric("relative_predictiveness", "`predictiveness_max` / `grad_norm`, median over the run", "smoothness",
           "The same relative to the gradient", added=True),
    Metric("lipschitz", "median over the run", "smoothness"),
    Metric("beta", "effective beta-smoothness, median over the run", "smoothness", "Effective beta"),
    Metric("beta_unsaturated", "the same over the points that are not saturated; null if there are none", "smoothness",
           "At points that are not saturated", added=True),
    Metric("scaled_beta", "`beta` * `weight_norm`^2, median over the run", "smoothness",
           "Effective beta times the squared norm of the weights", added=True),
    Metric("saturated", "share of the run in which points are saturated", "smoothness", has_ratio=False, added=True),
    Metric("curvature", "median over the run", "smoothness"),
    Metric("sharpness", "median over the run", "smoothness", "Sharpness"),
    Metric("largest_eigenvalue", "`largest`, median over the run", "spectrum", "Largest eigenvalue", added=True),
    Metric("smallest_eigenvalue", "`smallest`, median over the run", "spectrum", "Smallest eigenvalue",
           has_ratio=False, added=True),
    Metric("trace", "median over the run", "spectrum", "Trace", added=True),
    Metric("top_share", "median over the run", "spectrum", "Share of the trace in the largest eigenvalues",
           has_ratio=False, added=True),
    Metric("effective_rank", "median over the run", "spectrum", "Effective rank", added=True),
    Metric("random_loss_range", "`loss_range` along a random direction", "landscape-random",
           "Range of the loss", added=True),
    Metric("random_predictiveness", "`predictiveness` along a random direction", "landscape-random",
           "Largest change of the gradient", added=True),
    Metric("ics", "median over the run and over layers from the second on", "ics", "Distance of the gradients"),
    Metric("relative_ics", "`ics` / `grad_norm`, median over the run and over layers from the second on", "ics",
           "The same relative to the gradient", added=True),
    Metric("movement", "`wasserstein` / `std`, median over the run and units", "activations"),
    Metric("mean_change", "median over the run and units", "activations",
           "Change of the mean between measured steps", added=True),
    Metric("var_change", "median over the run and units", "activations",
           "Change of the variance between measured steps", added=True),
    Metric("probe_mean_change", "the same on the probe batch", "activations",
           "Change of the mean on the probe batch", added=True),
    Metric("probe_var_change", "the same on the probe batch", "activations",
           "Change of the variance on the probe batch", added=True),
    Metric("floor_mean_change", "the same from one batch to the next, with frozen weights", "activations",
           "Change of the mean with frozen weights", added=True),
    Metric("floor_var_change", "the same from one batch to the next, with frozen weights", "activations",
           "Change of the variance with frozen weights", added=True),
    Metric("kurtosis", "absolute excess kurtosis, median over the run and units", "activations",
           "Excess kurtosis"),
    Metric("non_gaussian", "share of units and of the run whose kurtosis exceeds 0.5 and that of a Gaussian sample",
           "activations", "Share of units that are not Gaussian", has_ratio=False, added=True),
    Metric("cosine", "median over the run and over layers from the second on", "ics", "Their cosine", has_ratio=False),
)  # fmt: skip


def _double(text: str, nullable: bool = True, added: bool = False) -> Column:
    return Column("double", text, nullable, added)


#: The column of what defines a run apart from its problem, norm, learning rate and seed. Tables of earlier versions
#: lack it; `storage.tables` fills it in on reading.
SETTINGS: Final = "settings"
_SETTINGS: Final = {
    SETTINGS: Column(
        "string", "the other settings that define the run, as a JSON object without those at their default; empty if "
        "unknown, as in a training loop of your own", nullable=False, added=True,
    )
}  # fmt: skip
#: The columns that identify the run of a row.
RUN: Final = {
    "run": Column("string", "name of the run's folder", nullable=False),
    "problem": Column("string", "`--problem`", nullable=False),
    "norm": Column("string", "`--norm`", nullable=False),
    "lr": Column("double", "learning rate", nullable=False),
    "seed": Column("int64", "`--seed`", nullable=False),
    **_SETTINGS,
}
_STEP: Final = {**RUN, "step": Column("int64", "training step t of the parameters theta_t", nullable=False)}
_LAYER: Final = {
    "layer": Column("int64", "the layer's number, from 1", nullable=False),
    "layer_name": Column("string", "the layer's name"),
}
_UNIT: Final = {**_LAYER, "unit": Column("int64", "the unit's number, from 0", nullable=False)}
_QUANTILES: Final = {f"q{p:02d}": _double(f"quantile of {p / 100:g}") for p in (1, 5, 25, 50, 75, 95, 99)}


def _metric_columns() -> dict[str, Column]:
    columns = {}
    for metric in METRICS:
        if metric.target:
            columns[metric.name.replace("steps_to", "target")] = _double(metric.target)
        columns[metric.name] = _double(metric.text, added=metric.added)
    return columns | {
        f"ratio_{metric.name}": _double(
            f"`{metric.name}` divided by the `none` run's"
            + ("" if metric.kind == "train" else " at each common step and layer; median"),
            added=metric.added,
        )
        for metric in METRICS
        if metric.has_ratio
    }


_LANDSCAPE: Final = {
    **_STEP,
    "alpha": _double("step length in learning rates; 0 is the point itself"),
    "step_size": _double("step length eta = alpha * lr, with the learning rate of the step"),
    "distance": _double("||eta g||"),
    "loss": _double("loss at theta - eta g", nullable=False),
    "grad_norm": _double("norm of the gradient there", nullable=False),
    "grad_distance": _double("||g(theta) - g(theta - eta g)||, the gradient predictiveness", nullable=False),
    "grad_cosine": _double("cosine of the two gradients", nullable=False),
    "grad_distance_summed": _double("the same length taken of each parameter tensor and summed, as the paper's figures "
                                    "appear to do", added=True),
}  # fmt: skip
_SMOOTHNESS: Final = {
    **_STEP,
    "step_lr": _double("learning rate of the step, as scheduled", added=True),
    "loss": _double("loss at the point, the penalty included", nullable=False),
    "penalty": _double("the loss's L2 penalty of the weights there", added=True),
    "weight_norm": _double("norm ||W|| of the weights that `--weight-decay` penalises; null if there are none. beta "
                           "||W||^2 does not depend on the scale of weights before BatchNorm", added=True),
    "grad_norm": _double("norm of the gradient there", nullable=False),
    "loss_min": _double("smallest loss on the line, alpha > 0"),
    "loss_max": _double("largest loss on the line, alpha > 0"),
    "predictiveness_min": _double("smallest grad_distance on the line"),
    "predictiveness_max": _double("largest grad_distance on the line"),
    "lipschitz": _double("largest gradient norm on the line, alpha = 0 included"),
    "beta": _double("effective beta: largest grad_distance / distance"),
    "beta_alpha": _double("step length, in learning rates, at which beta is attained", added=True),
    "saturated": Column("bool", "beta is 1 / (shortest step_size), where 90% of the gradient is lost", added=True),
    "curvature": _double("g'Hg / g'g, H the Hessian"),
    "sharpness": _double("eigenvalue of H that is largest in magnitude, signed"),
    "preconditioned": _double("largest eigenvalue of P^-1/2 H P^-1/2, P the diagonal by which Adam or RMSProp divides "
                              "its step; null for other optimisers, and before the first step", added=True),
    "threshold": _double("largest stable value of `preconditioned`, or of `sharpness` if the optimiser has no P; null "
                         "if unknown", added=True),
    "critical_alpha": _double("smallest probed alpha with a loss above the point's; null if none"),
    "critical_lr": _double("smallest step_size with a loss above the point's, to 1%, sought in steps that double; 0 if "
                           "the loss rises at once, null if it never does or rounding hides it", added=True),
    "batch_sharpness": _double("mean of g'Hg / g'g, each of one batch's loss, over random batches (`--batches`); null "
                               "without them", added=True),
    "batch_sharpness_error": _double("its standard error; null for one batch", added=True),
}  # fmt: skip
#: The directions of a line besides the gradient, in the column `direction` -> where the line goes, in words.
DIRECTIONS: Final = {"update": "along the update", "random": "along a random direction"}


def _direction(name: str, d: str) -> dict[str, Column]:
    return {"direction": Column("string", f"`{name}`: the line is theta - eta d in place of theta - eta g, with {d}")}


_UPDATE: Final = _direction("update", "the optimiser's update in learning rates, d = (theta_t - theta_{t+1}) / lr")
_RANDOM: Final = _direction("random", "a random d as long as the gradient")


_EIGENVALUES: Final = {
    "parameters": Column("int64", "number n of parameters", nullable=False),
    "largest": _double("largest eigenvalue"),
    "smallest": _double("smallest eigenvalue"),
    "eigenvalues": Column("list", "the K largest eigenvalues (`--top`), in descending order"),
    "residuals": Column("list", "||Hu - lambda u|| of these and, last, of the smallest: an eigenvalue is that near"),
    "trace": _double("trace"),
    "trace_error": _double("its standard error"),
    "top_share": _double("sum of the K largest eigenvalues / trace, which negative eigenvalues can make larger than 1; "
                         "null unless the trace is positive"),
    "effective_rank": _double("trace / largest eigenvalue, which negative eigenvalues can make smaller than 1; null "
                              "unless the trace is positive"),
    "products": Column("string", "how products with vectors are computed: complex step, double backward, or difference "
                       "(of gradients)"),
    "product_error": _double("relative error of a product by difference, measured on one vector; null for the others"),
    "product_count": Column("int64", "number of products", nullable=False),
}  # fmt: skip
_SPECTRUM: Final = {
    **_STEP,
    "step_lr": _double("learning rate of the step, as scheduled"),
    "threshold": _double("largest stable eigenvalue, 2 / lr for gradient descent; null if unknown, and for optimisers "
                         "that divide their step by a diagonal"),
    **_EIGENVALUES,
}  # fmt: skip
_DENSITY: Final = {
    **_STEP,
    "vector": Column("int64", "the random vector's number, from 0", nullable=False),
    "rank": Column("int64", "the node's number in ascending order, from 0", nullable=False),
    "node": _double("node of the quadrature: where eigenvalues are"),
    "weight": _double("weight of the node: their share; the weights of a vector add up to 1"),
}


#: The statements of the theory (section 4, appendix C) that are proved. All of them are equalities.
PROVED: Final = ("fact C.1", "fact C.2", "4.1", "4.2", "4.3", "4.4", "4.5")
#: Those that are not proved, or only under a condition. All of them are inequalities.
UNPROVED: Final = ("4.1 at y", "4.2b", "C.1")


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


KINDS: Final = (
    Kind("train", "train", "a training step", {
            **_STEP,
            "loss": _double("loss of the step's batch, the penalty included", nullable=False),
            "penalty": _double("the loss's L2 penalty of the weights, c ||W||^2 / 2 (`--weight-decay`)", added=True),
            "accuracy": _double("accuracy on the step's batch"),
            "grad_norm": _double("norm of the gradient", nullable=False),
            "step_lr": _double("learning rate of the step, as scheduled", added=True),
            "test_loss": _double("test loss, where evaluated, without the penalty"),
            "test_accuracy": _double("test accuracy, where evaluated"),
        },
        figures=(Drawing("curves", "training:panels", draws="1a-b, 2, 3, 11a, 12a, 13"),), tensorboard=True,
        section=Section("Training", "Thin lines are runs, wide lines medians. A cross marks a run that diverged.",
                        ("final_test_accuracy", "final_loss"), (1, 2, 3, 8))),
    Kind("landscape", "landscape", "a step length at a measured step", _LANDSCAPE,
        measurement="landscape:MEASUREMENT",
        figures=(Drawing("bands", "landscape:panels", draws="4a-b, 9a-b, 11b-c, 12b-c"),
                 Drawing("steps", "landscape:steps", draws="10")),
        studied=True, tensorboard=True,
        section=Section("Landscape along the gradient", "Each band spans the values on the line, from the smallest "
                        "to the largest. In a narrow band, the loss or the gradient changes little along a step.",
                        ("loss_range", "predictiveness"), (5, 6))),
    Kind("smoothness", "smoothness", "a measured step", _SMOOTHNESS,
        measurement="smoothness:MEASUREMENT",
        figures=(Drawing("curves", "smoothness:panels", draws="4c, 9c, 11d, 12d"),), studied=True, tensorboard=True,
        additions=("batches",),
        section=Section("Smoothness", "The largest change of the gradient on the line per unit of distance: lower is "
                        "smoother.", ("beta", "beta_unsaturated", "sharpness"), (7,))),
    Kind("landscape-update", "landscape", "a step length along the optimiser's update at a measured step",
         {**_LANDSCAPE, **_UPDATE},
        measurement="landscape:UPDATE", direction="update",
        figures=(Drawing("bands", "landscape:panels"), Drawing("steps", "landscape:steps")),
        studied=True, tensorboard=True),
    Kind("smoothness-update", "smoothness", "a measured step, along the optimiser's update",
         {**_SMOOTHNESS, **_UPDATE},
        measurement="smoothness:UPDATE", direction="update", figures=(Drawing("curves", "smoothness:panels"),),
        studied=True, tensorboard=True, additions=("batches",)),
    Kind("landscape-random", "landscape", "a step length along a random direction at a measured step",
         {**_LANDSCAPE, **_RANDOM},
        measurement="landscape:RANDOM", direction="random",
        figures=(Drawing("bands", "landscape:panels"), Drawing("steps", "landscape:steps")),
        studied=True, tensorboard=True,
        section=Section("Landscape along random directions", "As the landscape along the gradient, and equally far.",
                        ("random_loss_range", "random_predictiveness"), (15,))),
    Kind("smoothness-random", "smoothness", "a measured step, along a random direction",
         {**_SMOOTHNESS, **_RANDOM},
        measurement="smoothness:RANDOM", direction="random", figures=(Drawing("curves", "smoothness:panels"),),
        studied=True, tensorboard=True, additions=("batches",)),
    Kind("surface", "surface", "a point of the grid, or of the run's path", {
            **_STEP,
            "x": _double("coordinate along the first direction"),
            "y": _double("coordinate along the second direction; null on a line"),
            "loss": _double("loss here; that of a step of the path is its own network's", nullable=False),
            "path_step": _double("step of the path; null on the grid"),
            "x_share": _double("share of the path's variance along x; null for random directions"),
            "y_share": _double("share of the path's variance along y"),
            "x_eigenvalue": _double("eigenvalue of the Hessian along x; null unless directions are top", added=True),
            "y_eigenvalue": _double("eigenvalue of the Hessian along y", added=True),
        },
        measurement="surface:MEASUREMENT", figures=(Drawing("surface", "surface:panels"),)),
    Kind("smoothness-by-layer", "smoothness", "a layer at a measured step, all other layers held fixed", {
            **_STEP, **_LAYER,
            "grad_norm": _double("norm of the layer's gradient", nullable=False),
            "beta": _double("effective beta of the loss as a function of the layer's parameters"),
            "curvature": _double("curvature along the layer's gradient"),
            "sharpness": _double("eigenvalue of the layer's block of the Hessian that is largest in magnitude"),
        },
        measurement="by_layer:MEASUREMENT", figures=(Drawing("layers", "smoothness:by_layer"),), tensorboard=True),
    Kind("spectrum", "spectrum", "a measured step", _SPECTRUM,
        measurement="spectrum:MEASUREMENT", figures=(Drawing("eigenvalues", "spectrum:panels"),), studied=True,
        tensorboard=True,
        section=Section("Spectrum of the Hessian", "Eigenvalues of the Hessian, beside the largest one at which the "
                        "step of training is stable.", ("largest_eigenvalue", "trace", "effective_rank"), ())),
    Kind("spectrum-ggn", "spectrum", "a measured step, of the Gauss-Newton matrix", {
            **_SPECTRUM,
            "beside": _double("eigenvalue of H - G that is largest in magnitude, G the Gauss-Newton matrix"),
        },
        measurement="spectrum:GGN", figures=(Drawing("eigenvalues", "spectrum:panels"),), studied=True,
        tensorboard=True),
    Kind("spectrum-by-layer", "spectrum", "a layer at a measured step, all other layers held fixed",
         {**_STEP, **_LAYER, **_EIGENVALUES},
        measurement="spectrum:BY_LAYER", figures=(Drawing("layers", "spectrum:by_layer"),), tensorboard=True),
    Kind("spectrum-density", "spectrum", "a node of the quadrature at a measured step", _DENSITY,
        measurement="spectrum:DENSITY", figures=(Drawing("density", "spectrum:density"),), studied=True),
    Kind("spectrum-ggn-density", "spectrum", "a node of the quadrature at a measured step, of the Gauss-Newton matrix",
         _DENSITY,
        measurement="spectrum:GGN_DENSITY", figures=(Drawing("density", "spectrum:density"),), studied=True),
    Kind("ics", "ics", "a layer at a measured step", {
            **_STEP, **_LAYER,
            "grad_norm": _double("||G_i||", nullable=False),
            "grad_norm_updated": _double("||G'_i||, with the layers before it updated", nullable=False),
            "ics": _double("||G_i - G'_i||", nullable=False),
            "cosine": _double("cosine of G_i and G'_i"),
        },
        measurement="ics:MEASUREMENT", figures=(Drawing("shift", "ics:panels", draws="3"),), studied=True,
        tensorboard=True,
        section=Section("Internal covariate shift", "How much a layer's gradient changes when the layers before it "
                        "are updated. A distance of 0 and a cosine of 1 mean no shift.", ("ics", "cosine"), (4, 16))),
    Kind("activations", "activations", "a unit at a measured step", {
            **_STEP, **_UNIT,
            "values": Column("int64", "m: the number of values of the unit (samples times positions)", added=True),
            "mean": _double("mean of the norm's output over the batch"),
            "std": _double("standard deviation, with divisor m"),
            "skewness": _double("skewness"),
            "kurtosis": _double("excess kurtosis: 0 for a Gaussian, of which m values have a mean of -6 / (m + 1)"),
            **_QUANTILES,
            "sigma": _double("standard deviation of the linear map's output, before the norm"),
            "wasserstein": _double("Wasserstein-1 distance from the previous measured step"),
            "mean_change": _double("|change of mean| since the previous measured step", added=True),
            "var_change": _double("|change of std^2| since the previous measured step", added=True),
            "mean_drift": _double("mean less that of the first measured step", added=True),
            "var_drift": _double("std^2 less that of the first measured step", added=True),
            "probe_mean": _double("mean over the batch of step 0, with this step's weights and noise (`--probe`)",
                                  added=True),
            "probe_std": _double("standard deviation over the same batch", added=True),
            "probe_mean_change": _double("|change of probe_mean| since the previous measured step", added=True),
            "probe_var_change": _double("|change of probe_std^2| since the previous measured step", added=True),
            "floor_mean_change": _double("|change of mean| to the batch and the noise of the next training step, at "
                                         "this step's weights (`--probe`)", added=True),
            "floor_var_change": _double("|change of std^2|, likewise", added=True),
            "quantiles": Column("list", "the quantiles at 0.005, 0.015, ..., 0.995"),
        },
        measurement="activations:MEASUREMENT",
        figures=(Drawing("distributions", "activations:panels", draws="1c, 2, 8, 14"),
                 Drawing("moments", "activations:moments", draws="7")),
        studied=True, tensorboard=True, additions=("probe",),
        section=Section("Distributions of the layers' inputs", "Quantiles of single units over training. Bands that "
                        "wander mean unstable inputs.", ("movement", "mean_change", "var_change", "kurtosis"), (3, 9))),
    Kind("theory", "theory", "a statement about a unit at a measured step", {
            **_STEP,
            "statement": Column("string", f"proved: {_listed(PROVED)}; not proved: {_listed(UNPROVED)}"),
            **_UNIT,
            "affine": Column("string", "`identity`: gamma = sigma, beta = mu; `standard`: gamma = 1, beta = 0"),
            "lhs": _double("left side"),
            "rhs": _double("right side"),
            "residual": _double("(rhs - lhs) / largest term; null where all terms are 0"),
            "holds": Column("bool", "proved: equality to 1e-9; not proved: lhs <= rhs; null where all terms are 0, and "
                            "for 4.5 where the condition is not met"),
            "condition": Column("bool", "4.2: curvature >= 0 and alignment > 0; 4.2b, C.1: H orders v and g as their "
                                "lengths do; 4.5: alignment > 0"),
            "sigma": _double("standard deviation of the unit's activations"),
            "gamma": _double("gamma of the added BatchNorm"),
            "grad_norm": _double("||g||"),
            "mean_fraction": _double("<1, g>^2 / m as a fraction of ||g||^2"),
            "output_fraction": _double("<g, y_hat>^2 / m as a fraction of ||g||^2"),
            "alignment": _double("cosine of g and y_hat; 4.5: of the initial and the current weights"),
            "curvature": _double("v'Hv / v'v; 4.2b, C.1: g'Hg / g'g"),
            "input_norm": _double("lambda of 4.4: spectral norm of the layer's inputs"),
            "reduction": _double("4.5: 1 - lhs / ||W_0 - W*||^2", added=True),
        },
        measurement="theory:MEASUREMENT", figures=(Drawing("sides", "theory:panels", draws="5"),), studied=True,
        tensorboard=True,
        section=Section("The theorems, both sides", "Points on the diagonal are equalities. Below it, the left side is "
                        "smaller.", (), (10, 11, 12, 13, 14))),
    Kind("compare", "compare", "a run", {
            **RUN,
            "steps": Column("int64", "last step of the run", nullable=False),
            "diverged_at": _double("step at which the loss became infinite or NaN; null if it stayed finite"),
            "initial_loss": _double("training loss of the first step"),
            "baseline_loss": _double("training loss of the best constant answer, if the loss is a regression's",
                                     added=True),
            "baseline_accuracy": _double("accuracy of the best constant answer", added=True),
            **_metric_columns(),
        },
        figures=(Drawing("metrics", "compare:panels"),), compared=True,
        section=Section("Comparison", "Dots are runs, bars medians. The best come first.",
                        ("steps_to_accuracy", "steps_to_loss"), (1, 8))),
    Kind("compare-summary", "compare", "a metric of a problem, norm and learning rate, over seeds", {
            "problem": Column("string", "`--problem`"),
            "norm": Column("string", "`--norm`"),
            "lr": _double("learning rate"),
            **_SETTINGS,
            "figure": Column("string", "the metric: a column of the compare table"),
            "seeds": Column("int64", "number of seeds with this metric", nullable=False),
            "diverged": Column("int64", "number of runs that diverged", nullable=False),
            "never": _double("number of seeds that never reach the target, for the steps to one", added=True),
            "median": _double("median over seeds"),
            "low": _double("lower end of its interval"),
            "high": _double("upper end of its interval"),
            "confidence": _double("coverage of the interval: at least 0.95 from six seeds on", added=True),
            "ratio": _double("median over seeds of the ratio to the `none` run of the same seed"),
            "ratio_low": _double("lower end of its interval"),
            "ratio_high": _double("upper end of its interval"),
            "ratio_confidence": _double("coverage of the interval", added=True),
        }, compared=True),
    Kind("compare-claims", "compare", "a part of a claim at a learning rate", {
            "problem": Column("string", "`--problem`"),
            **_SETTINGS,
            "claim": Column("int64", "the claim's number", nullable=False),
            "title": Column("string", "the claim"),
            "verdict": Column("string", "verdict on the claim"),
            "part": Column("string", "the statistic that the part rests on"),
            "rule": Column("string", "what its median must be"),
            "lr": _double("learning rate"),
            "seeds": Column("int64", "number of seeds", nullable=False),
            "undefined": _double("number of seeds without a value; they count for neither side", added=True),
            "median": _double("median over seeds"),
            "low": _double("lower end of its interval"),
            "high": _double("upper end of its interval"),
            "confidence": _double("coverage of the interval: at least 0.95 from six seeds on", added=True),
            "p_value": _double("p-value of the sign test that the median obeys the rule", added=True),
            "p_against": _double("p-value of the test that it breaks the rule, adjusted for the claim's parts (Holm)",
                                 added=True),
            "part_verdict": Column("string", "verdict on the part"),
            "decides": Column("bool", "whether the claim's verdict rests on it", added=True),
            "power": _double("probability that the claim is reproduced if each effect is one standard deviation",
                             added=True),
            "paper": _double("the statistic of the paper's own figure at this learning rate; null if none shows it",
                             added=True),
            "values": Column("list", "the statistic of each seed, in the order of the seeds", added=True),
            "command": Column("string", "the command that would measure what is missing"),
        }, compared=True),
)  # fmt: skip


def names() -> list[str]:
    """The names of all kinds."""
    return [kind.name for kind in KINDS]


def get(name: str) -> Kind:
    """The kind with this name. Raises InputError for an unknown name.

    >>> get("ics").command
    'ics'
    """
    for kind in KINDS:
        if kind.name == name:
            return kind
    raise unknown("kind of table", name, names())


def measured(*, studied: bool = False) -> list[str]:
    """The names of the kinds that measurements produce; with `studied`, only those that a study accepts."""
    return [kind.name for kind in KINDS if kind.measurement and (kind.studied or not studied)]


def drawing(kind: str, name: str | None = None) -> Drawing:
    """The figure of a kind of table that has this name; its default figure without a name.

    Raises:
        InputError: If the kind is unknown or not drawn, or has no such figure.

    >>> drawing("landscape").name, drawing("landscape", "steps").draws
    ('bands', '10')
    """
    drawings = {entry.name: entry for entry in get(kind).figures}
    if not drawings:
        raise unknown("kind of figure", kind, [entry.name for entry in KINDS if entry.figures])
    if name is None:
        return get(kind).figures[0]
    if name not in drawings:
        raise unknown(f"figure of a {kind} table", name, drawings)
    return drawings[name]
