"""What the site needs beyond MkDocs: pages that read right on GitHub, formulas without scripts, and doctests as code.

`mkdocs.yml` names this file twice: as hooks of MkDocs, and as an extension of griffe, which reads the docstrings.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
_LINK = re.compile(r"(?<=\]\()(?!https?:)([^)#\s]+)")
_NESTED = re.compile(r"^( +)(?=- )", re.MULTILINE)
_DOCTEST = re.compile(r"^>>> .*?(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)


class Formulas(Extension):
    """`$...$` and `$$...$$` as MathML, which browsers draw by themselves."""

    def extendMarkdown(self, md: Markdown) -> None:
        # Before backslashes are taken for escapes.
        md.inlinePatterns.register(_Formula(r"(?<![\\$\w])(\$\$?)(?!\s)([^$]+?)(?<!\s)\1(?!\w)", md), "formula", 185)


class _Formula(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:
        block = m[1] == "$$"
        formula = convert(" ".join(m[2].split()), display="block" if block else "inline")
        html = f'<span class="formula">{formula}</span>' if block else formula
        return self.md.htmlStash.store(html), m.start(0), m.end(0)


class Doctests(griffe.Extension):
    """Doctests of docstrings as blocks of code: in Markdown, `>>>` would begin a quotation."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = _DOCTEST.sub(r"```pycon\n\g<0>\n```", obj.docstring.value)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the formulas and the addresses. The setting `repo_url` would ask GitHub for the number of stars."""
    config.markdown_extensions.append(Formulas())
    config.extra["social"] = [{"icon": "fontawesome/brands/github", "link": URLS["Repository"]}]
    config.site_url = URLS["Documentation"]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The README is the front page."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Make a page of GitHub one of the site: links leave the site where their files do, and lists nest by four."""
    here = posixpath.dirname(f"docs/{page.file.src_uri}")
    start = "" if page.file.src_uri == "index.md" else here

    def link(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(start, match[1]))
        if path == "README.md":
            path = "docs/index.md"
        elif (ROOT / path).is_dir() or not path.startswith("docs/"):
            return f"{URLS['Repository']}/{'tree' if (ROOT / path).is_dir() else 'blob'}/main/{path}"
        return posixpath.relpath(path, here)

    return _LINK.sub(link, _NESTED.sub(r"\1\1", markdown))
