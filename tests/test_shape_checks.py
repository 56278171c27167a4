"""Wrong shapes and types fail in the tests: the import hook of shape_checks.py is in place."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import pytest
import shape_checks
import torch
from jaxtyping import TypeCheckError

from bnsmooth_cli import norms
from bnsmooth_cli.networks.vectors import euclidean_norm


def modules(package):
    root = importlib.import_module(package)
    return [root, *(importlib.import_module(m.name) for m in pkgutil.iter_modules(root.__path__, f"{package}."))]


@pytest.mark.parametrize("package", shape_checks.CHECKED)
def test_every_function_of_the_package_is_checked(package):
    for module in modules(package):
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if function.__module__ == module.__name__:
                assert hasattr(function, "__wrapped__"), f"{module.__name__}.{name}"


def test_activations_of_a_wrong_shape_fail():
    norm = norms.build("batch", 3)
    with pytest.raises(TypeCheckError, match="batch channels"):
        norm(torch.ones(3))


def test_an_argument_of_a_wrong_type_fails():
    with pytest.raises(TypeCheckError, match="'x'"):
        euclidean_norm("three")


def test_the_hook_cannot_come_late():
    importlib.import_module(shape_checks.CHECKED[0])
    with pytest.raises(RuntimeError, match="imported before the import hook"):
        shape_checks.install()
