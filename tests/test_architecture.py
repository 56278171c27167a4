"""The architecture page against the code: the tree is generated from docstrings, and imports run in the stated order.

`python tests/test_architecture.py` writes the page's tree anew.
"""

from __future__ import annotations

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/architecture.md"
FOLDERS = ("bnsmooth_cli", "benchmarks", "reproduction", "tests")
MARKS = "<!-- tree: python tests/test_architecture.py -->\n", "<!-- end of the tree -->\n"


def summary(path: Path) -> str:
    """The first sentence of a module's docstring."""
    paragraph = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n\n")[0].replace("\n", " ")
    return re.split(r"(?<=[.?])(?<! al\.)\s", paragraph)[0]


def tree(folder: Path, depth: int = 0) -> Iterator[str]:
    """One line per Python file, and per folder that holds some; a package's own line is that of its `__init__.py`."""
    package = folder / "__init__.py"
    about = f": {summary(package)}" if package.exists() else ""
    yield f"{'  ' * depth}- `{folder.name}/`{about}\n"
    for path in sorted(folder.iterdir()):
        if path.is_dir() and any(path.rglob("*.py")):
            yield from tree(path, depth + 1)
        elif path.suffix == ".py" and path != package:
            yield f"{'  ' * depth}  - `{path.name}`: {summary(path)}\n"


def written() -> str:
    """The page with its tree made from the files."""
    before, _, rest = PAGE.read_text().partition(MARKS[0])
    after = rest.partition(MARKS[1])[2]
    lines = "".join(line for name in FOLDERS for line in tree(ROOT / name))
    return f"{before}{MARKS[0]}{lines}{MARKS[1]}{after}"


def test_the_tree_of_the_page_is_the_tree():
    assert PAGE.read_text() == written(), "python tests/test_architecture.py writes it anew"


def test_files_that_the_page_names_exist():
    for name in re.findall(r"`([a-z_]+/[a-z_/]*(?:\.py)?)`", PAGE.read_text().partition(MARKS[1])[2]):
        assert (ROOT / name).exists() or (ROOT / "bnsmooth_cli" / name).exists(), name


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "bnsmooth_cli").rglob("*.py")
}


def imports(node: ast.AST, functions: bool) -> Iterator[str]:
    """The package's modules that a module imports; with `functions`, those that its functions import too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names if alias.name in MODULES)
        elif isinstance(child, ast.ImportFrom):
            names = [f"{child.module}.{alias.name}" for alias in child.names]
            yield from (name for name in (n if n in MODULES else child.module for n in names) if name in MODULES)
        elif not (isinstance(child, ast.FunctionDef) and not functions) and not (
            isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        ):
            yield from imports(child, functions)


def graph(functions: bool = False) -> dict[str, set[str]]:
    return {name: {*imports(ast.parse(path.read_text()), functions)} - {name} for name, path in MODULES.items()}


def test_imports_of_modules_make_no_circle():
    try:
        graphlib.TopologicalSorter(graph()).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" imports ".join(error.args[1][::-1]))


def test_imports_run_in_the_order_of_the_page():
    """From a room to its own modules, to rooms further on, and to leaves; inside functions too."""
    order = re.search(r"^    (cli -> .*?)\n\n", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert order
    rooms = re.split(r"\s*->\s*|\s*,\s*", order[1])
    modules = graph(functions=True)
    assert {*rooms} == {name.split(".")[1] for name in modules if "." in name} - {"__main__"}
    for name, imported in modules.items():
        for other in imported:
            ends = [path.split(".")[1] for path in (name, other) if "." in path]
            if len(ends) == 2 and ends[0] != "__main__" and modules[other]:
                assert rooms.index(ends[0]) <= rooms.index(ends[1]), f"{name} imports {other}"


if __name__ == "__main__":
    PAGE.write_text(written())
