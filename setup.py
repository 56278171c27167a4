"""The description on PyPI: the README, with links that lead to the repository. All else is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
repository = re.search(r'^Repository = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
setup(
    long_description=re.sub(
        r"(!?\[[^\]]*\]\()(?!https?:|#)([^)]+)",
        lambda link: f"{link[1]}{repository}/{'raw' if link[1].startswith('!') else 'blob'}/main/{link[2]}",
        (ROOT / "README.md").read_text(),
    ),
    long_description_content_type="text/markdown",
)
