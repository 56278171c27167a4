"""The version, read from the installed package's metadata: pyproject.toml is its one place."""

from importlib.metadata import version

__version__ = version("bnsmooth")
