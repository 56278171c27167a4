"""The report of a study: one page that needs nothing else, in HTML and in Markdown."""

from __future__ import annotations

import base64
import re
import shutil
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

import bnsmooth_cli as bns
from bnsmooth_cli import report
from bnsmooth_cli.storage import tables
from bnsmooth_cli.storage.stretches import history
from bnsmooth_cli.studies.claims import CLAIMS

GRID = (
    "compare --norms none,l1 --seeds 0,1 --problem dln --depth 5 --dimension 4 --samples 30 --lrs 1e-4 --steps 20 "
    "--save-every 10 --measure landscape,smoothness,ics,activations,theory"
)
KINDS = ("train", "landscape", "smoothness", "ics", "activations", "theory", "compare")


class Page(HTMLParser):
    """What a page holds: its text, its tables' cells, its images, and whatever it would fetch."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of two norms and two seeds with every table."""
    import sys

    from bnsmooth_cli.cli import main

    folder = tmp_path_factory.mktemp("reported") / "study"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["bnsmooth", *GRID.split(), "-o", str(folder)])
        with pytest.raises(SystemExit, match="0"):
            main()
    return folder


def test_the_page_has_everything_in_one_file(cli, tmp_path, study):
    code, out, _ = cli(f"report {study} -o report.html")
    assert (code, out.strip()) == (0, "report.html")
    source = (tmp_path / "report.html").read_text()
    page = Page(source)
    assert not page.open
    links = [(tag, a.get(name)) for tag, a in page.tags for name in ("src", "href", "srcset", "action") if a.get(name)]
    assert {tag for tag, target in links if not target.startswith(("#", "data:image/png;base64,"))} == set()
    assert not re.search(r"https?://|@import|url\(", source)
    images = [a["src"] for tag, a in page.tags if tag == "img"]
    assert len(images) == len(KINDS)
    for image in images:
        assert base64.b64decode(image.split(",")[1]).startswith(b"\x89PNG")
    assert [*tmp_path.iterdir()] == [tmp_path / "report.html"]


def test_the_page_says_claims_first_then_figures_comparison_settings_and_commands(cli, tmp_path, study):
    cli(f"report {study} -o report.html")
    text = Page((tmp_path / "report.html").read_text()).text
    places = [
        text.index(f"\n{title}\n") for title in ("The paper's claims", "Figures", "Comparison", "Settings and versions")
    ]
    assert places == sorted(places)
    claims, figures, comparison, settings = (text[a:b] for a, b in zip(places, [*places[1:], None], strict=True))
    for claim in CLAIMS:
        assert claim.title in claims
    assert "inconclusive" in claims
    assert "Effective beta (×: ratio to none): none " in figures
    assert "steps to loss" in comparison
    assert settings.count("made by") == 1
    assert re.search(rf"made bybnsmooth {bns.__version__}, torch [^,]+, cpu .*, 1 thread\n", settings)
    assert "bnsmooth compare --norms none,l1 --lrs 0.0001 --seeds 0,1 --problem dln" in settings
    assert f"bnsmooth report {study}" in settings


@pytest.mark.slow
def test_the_commands_of_the_page_make_it_again(cli, tmp_path, study):
    cli(f"report {study} -o first.html")
    commands = Page((tmp_path / "first.html").read_text()).text.split("Commands\n")[-1]
    lines = re.findall(r"^bnsmooth .*$", commands, re.MULTILINE)
    assert len(lines) == 2
    for line in lines:
        assert cli(line.removeprefix("bnsmooth ").replace(str(study), "again"))[0] == 0
    first, again = ((tmp_path / name).read_text() for name in ("first.html", "report.html"))
    assert first.replace(str(study), "again").replace(">study<", ">again<").replace(": study", ": again") == again


def test_markdown_has_its_figures_beside_it(cli, tmp_path, study):
    assert cli(f"report {study} -o pages/report.md")[0] == 0
    text = (tmp_path / "pages/report.md").read_text()
    images = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert len(images) == len(KINDS)
    assert all((tmp_path / "pages" / image).read_bytes().startswith(b"\x89PNG") for image in images)
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        widths = {row.count("|") for row in block.splitlines()}
        assert len(widths) == 1, block.splitlines()[0]
    assert cli(f"report {study} --format md")[0] == 0
    assert (study / "report.md").exists()


def test_a_run_that_two_machines_computed_is_named_with_their_steps(study):
    runs = bns.Study(study).runs()
    rows = bns.read_table(runs[0].train_path)
    provenance = rows.attrs["bnsmooth"]
    (one,) = provenance["stretches"]
    provenance["stretches"] = [{**one, "last": 9}, {**one, "first": 10, "threads": 2}]
    path = study.parent / "moved.parquet"
    tables.write_table(path, "train", [rows], provenance)
    moved = SimpleNamespace(name="moved", train_path=path)
    assert report._makers([*runs, moved]) == [
        history([one]), f"moved: steps 0-9: {history([one])}; steps 10-20: {history([{**one, 'threads': 2}])}"
    ]  # fmt: skip


def test_what_was_not_measured_has_no_figure(cli, tmp_path, study):
    lean = tmp_path / "lean"
    shutil.copytree(study, lean)
    for path in lean.glob("runs/*/*.parquet"):
        if path.stem not in ("train", "smoothness"):
            path.unlink()
    assert cli(f"report {lean} -o lean.html")[0] == 0
    page = Page((tmp_path / "lean.html").read_text())
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 3


def test_names_are_text_and_never_markup(cli, tmp_path, study):
    shutil.copytree(study, tmp_path / "<script>alert(1)<")
    cli("report '<script>alert(1)<' -o r.html")
    assert "<script>alert" not in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("absent", "no study.json"),
        ("STUDY -o report.pdf", ".html"),
        ("STUDY --format pdf", "known: html, md"),
        ("STUDY --format md -o report.html", "ends in .md"),
        ("damaged", "compare.parquet"),
        ("uncompared", "bnsmooth compare"),
        ("other", "study.json"),
        ("half", "smoothness.parquet"),
        ("empty", "empty/compare.parquet: contains no runs"),
        ("STUDY -o STUDY", "ends in .html"),
    ],
)
def test_bad_input_is_one_line(cli, tmp_path, study, line, said):
    for name in ("damaged", "uncompared", "other", "half", "empty"):
        if line == name:
            shutil.copytree(study, tmp_path / name)
    if line == "damaged":
        (tmp_path / "damaged/compare.parquet").write_bytes(b"PAR1")
    elif line == "uncompared":
        (tmp_path / "uncompared/compare.parquet").unlink()
    elif line == "other":
        (tmp_path / "other/study.json").write_text('{"format": 99}')
    elif line == "half":
        path = next((tmp_path / "half").glob("runs/*/smoothness.parquet"))
        path.write_bytes(path.read_bytes()[:300])
    elif line == "empty":
        path = tmp_path / "empty/compare.parquet"
        tables.write_table(path, "compare", [tables.read_table(path).head(0)], tables.read_provenance(path))
    code, _, err = cli(f"report {line.replace('STUDY', str(study))}")
    assert code == 2
    assert err.count("\n") == 1
    assert said in err
