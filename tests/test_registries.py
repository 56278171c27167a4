"""Kinds of tables and norms are listed once, in their registries."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from bnsmooth_cli import kinds, norms, problems
from bnsmooth_cli.config import resolve
from bnsmooth_cli.studies import metrics
from bnsmooth_cli.training.needs import Needs

ROOT = Path(__file__).parents[1]
NAMES = {
    "kinds": set(kinds.names()),
    "norms": {name for norm in norms.NORMS for name in (norm.name, norm.name.partition(":")[0], norm.example) if name},
}
REGISTRIES = {"bnsmooth_cli/kinds.py", "bnsmooth_cli/norms/__init__.py"}
#: This many names of one registry in one literal are a list of its own.
A_LIST = 3
#: Literals that may name kinds or norms: (file, name that the literal is assigned to) -> the reason.
JUSTIFIED = {
    ("bnsmooth_cli/__init__.py", "_HOMES"): "functions of the Python API; some have the name of a kind",
    ("bnsmooth_cli/studies/metrics.py", "_COLUMNS"): "a function for each kind that has metrics; a test below holds it",
    ("bnsmooth_cli/studies/claims.py", "_LP"): "the norms that claims 8 and 9 are about",
    ("bnsmooth_cli/training/needs.py", "_PEAKS"): "the measured memory of each command; a test below holds it",
    ("benchmarks/long_work.py", "MEASURED"): "what the benchmark of one pass measures",
    ("benchmarks/linear.py", "GROUPS"): "the norms that are timed, with their parameters per layer",
    ("benchmarks/norms.py", "NAMES"): "the norms that are timed",
    ("reproduction/scales.py", "LP"): "the norms of the paper's figures 11 to 14",
    ("reproduction/scales.py", "_MEASURE"): "what is measured of VGG; the theorems are checked on the linear network",
    ("reproduction/figures.py", "NOISY"): "the norms of the paper's figure 2",
    ("reproduction/figures.py", "SECTIONS"): "the norms of the paper's figure 7",
    ("reproduction/scales.py", "NETWORKS"): "the norms of the experiments on noise",
    ("reproduction/gather.py", "_KEPT"): "how many steps of the evidence are published",
    ("reproduction/gather.py", "_OF_PLAIN"): "of which evidence two norms are enough",
}


def literals(tree: ast.AST) -> Iterator[tuple[str, int, list[str]]]:
    """The name that it is assigned to, the line and the strings of every list, tuple, set, dictionary and Literal.

    A string with commas counts as the list of its parts.
    """
    owner = {
        node: ast.unparse(target)
        for statement in ast.walk(tree)
        if isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value
        for target in (statement.targets if isinstance(statement, ast.Assign) else [statement.target])
        for node in ast.walk(statement.value)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            elements = node.elts
        elif isinstance(node, ast.Dict):
            elements = [key for key in node.keys if key]
        elif isinstance(node, ast.Call):
            elements = [ast.Constant(keyword.arg) for keyword in node.keywords if keyword.arg]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "," in node.value:
            elements = [ast.Constant(part.strip()) for part in node.value.split(",")]
        else:
            continue
        strings = [e.value for e in elements if isinstance(e, ast.Constant) and isinstance(e.value, str)]
        yield owner.get(node, ""), node.lineno, strings


def lists_of_names() -> dict[tuple[str, str], list[str]]:
    """Every literal outside the registries that lists their names: (file, assigned to) -> what it lists, where."""
    found: dict[tuple[str, str], list[str]] = {}
    for folder in ("bnsmooth_cli", "benchmarks", "reproduction"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            file = path.relative_to(ROOT).as_posix()
            if file in REGISTRIES:
                continue
            for name, line, strings in literals(ast.parse(path.read_text())):
                for registry, names in NAMES.items():
                    if len(names.intersection(strings)) >= A_LIST:
                        found.setdefault((file, name), []).append(f"{file}:{line} lists {registry}: {strings}")
    return found


def test_no_module_lists_kinds_or_norms_of_its_own():
    unjustified = [text for key, texts in lists_of_names().items() if key not in JUSTIFIED for text in texts]
    assert not unjustified, "\n" + "\n".join(unjustified)


def test_every_kind_that_has_metrics_can_compute_them():
    assert set(metrics._COLUMNS) == {metric.kind for metric in kinds.METRICS} - {"train"} | {"theory"}


def test_every_justification_is_needed():
    assert set(JUSTIFIED) <= set(lists_of_names())


@pytest.mark.parametrize(
    "source",
    [
        "X = ['none', 'batch', 'l1']",
        "def f(): return {'ics': 1, 'theory': 2, 'surface': 3}",
        "for x in ('train', 'landscape', 'ics', my): pass",
        "X: Literal['none', 'batch', 'noisy-batch']",
        "f(norms='none,batch,l1')",
        "X = dict(ics=1, theory=2, surface=3)",
    ],
)
def test_a_list_is_found_in_every_form(source):
    counts = [
        len(names.intersection(strings)) for _, _, strings in literals(ast.parse(source)) for names in NAMES.values()
    ]
    assert max(counts) >= A_LIST


def test_the_peak_memory_of_every_studied_kind_is_known():
    needs = Needs(problems.build(resolve("dln", samples=20, depth=2)))
    assert all(needs.peak(kind) > 0 for kind in kinds.measured(studied=True))
