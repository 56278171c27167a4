"""What a release consists of: one version, the files of the distributions, and the workflows that make and try them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = {path.name: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")}
PAGES = [*ROOT.glob("*.md"), *(ROOT / ".github").rglob("*.md"), *(ROOT / ".github").rglob("*.yml")]


def check_of_the_tag(folder: Path, tag: str) -> int:
    """The status of the step that compares a tag with the files of a folder."""
    (step,) = (
        step for step in WORKFLOWS["release.yml"]["jobs"]["build"]["steps"] if "CITATION" in step.get("name", "")
    )
    command = ["bash", "-eo", "pipefail", "-c", step["run"]]  # as GitHub runs it
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "GITHUB_REF_NAME": tag}, capture_output=True
    ).returncode


def test_the_version_of_the_project_could_be_released():
    assert check_of_the_tag(ROOT, f"v{PROJECT['version']}") == 0


@pytest.mark.parametrize("file", ["pyproject.toml", "CHANGELOG.md", "CITATION.cff"])
def test_a_tag_is_refused_if_a_file_states_another_version(tmp_path, file):
    for name in ("pyproject.toml", "CHANGELOG.md", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    changed = (tmp_path / file).read_text().replace(PROJECT["version"], "0.0.9")
    (tmp_path / file).write_text(changed)
    assert check_of_the_tag(tmp_path, f"v{PROJECT['version']}") != 0


def test_the_code_states_no_version_of_its_own():
    for path in (ROOT / "bnsmooth_cli").rglob("*.py"):
        assert PROJECT["version"] not in path.read_text(), path


def test_the_python_versions_are_tested_and_the_oldest_and_newest_are_tried_before_a_release():
    prefix = "Programming Language :: Python :: "
    versions = [line.removeprefix(prefix) for line in PROJECT["classifiers"] if line.startswith(f"{prefix}3.")]
    assert PROJECT["requires-python"] == f">={versions[0]}"
    matrix = WORKFLOWS["tests.yml"]["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == versions
    assert matrix["include"] == [{"python": versions[0], "packages": "oldest"}]
    tried = WORKFLOWS["release.yml"]["jobs"]["smoke"]["strategy"]["matrix"]["include"]
    assert [(entry["packages"], entry["python"]) for entry in tried] == [
        ("oldest", versions[0]),
        ("newest", versions[-1]),
    ]


def test_only_the_job_that_publishes_may_do_more_than_read():
    more = {"release.yml": {"publish": {"id-token": "write"}},
            "docs.yml": {"deploy": {"pages": "write", "id-token": "write"}}}  # fmt: skip
    for name, workflow in WORKFLOWS.items():
        assert workflow["permissions"] == {"contents": "read"}
        allowed = {job: steps["permissions"] for job, steps in workflow["jobs"].items() if "permissions" in steps}
        assert allowed == more.get(name, {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_and_make_targets_that_a_page_names_exist(page):
    text = page.read_text()
    named = re.findall(r"\]\(([^):#]+)(?:#[^)]*)?\)", text)
    named += re.findall(r"`((?:\.github|docs|tests)/[\w/.-]+|pyproject\.toml|\w+\.(?:cff|md))`", text)
    named += re.findall(r"https://github\.com/bnsmooth/bnsmooth/blob/main/([\w/.-]+)", text)
    assert [name for name in named if not (ROOT / name).exists()] == []
    targets = {*re.findall(r"^([\w-]+)(?: [\w-]+)*:", (ROOT / "Makefile").read_text(), re.MULTILINE)}
    assert {*re.findall(r"(?:`|^ {4})make ([\w-]+)", text, re.MULTILINE)} <= targets


@pytest.mark.slow
def test_the_distributions_hold_the_package_and_the_licence_and_nothing_else(tmp_path):
    tree, dist = tmp_path / "tree", tmp_path / "dist"
    shutil.copytree(ROOT / "bnsmooth_cli", tree / "bnsmooth_cli", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", tree / "tests", ignore=shutil.ignore_patterns("__pycache__", "samples"))
    about = ("CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "README.md", "pyproject.toml", "setup.py")
    for name in about:
        shutil.copy(ROOT / name, tree)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", dist, tree]  # the wheel from the sdist
    subprocess.run(command, check=True, capture_output=True)
    package = {str(path.relative_to(tree)) for path in (tree / "bnsmooth_cli").rglob("*") if path.is_file()}
    assert {"bnsmooth_cli/py.typed", "bnsmooth_cli/data/shakespeare.txt.xz"} <= package

    name = f"bnsmooth-{PROJECT['version']}"
    with zipfile.ZipFile(dist / f"{name}-py3-none-any.whl") as wheel:
        info = {f"{name}.dist-info/{file}" for file in (
            "METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt")}  # fmt: skip
        assert {*wheel.namelist()} == package | info
        metadata = wheel.read(f"{name}.dist-info/METADATA").decode()
        assert "\nLicense-Expression: MIT\n" in metadata
        assert f"]({PROJECT['urls']['Repository']}/raw/main/docs/images/training.png)" in metadata
        assert not re.search(r"\]\((?!https:)", metadata)
    with tarfile.open(dist / f"{name}.tar.gz") as source:
        files = {file.name.removeprefix(f"{name}/") for file in source if file.isfile()}
    made = {file for file in files if file.startswith("bnsmooth.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    assert files == {*package, *about, *made}
