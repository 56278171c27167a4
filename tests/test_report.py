"""The report of a study: one page that needs nothing else, in HTML and in Markdown."""

from __future__ import annotations

import base64
import math
import re
import shutil
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
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


@pytest.mark.slow
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
    first, again = (re.sub(r"Trained and measured [^<]*", "", page) for page in (first, again))
    assert first.replace(str(study), "again").replace(">study<", ">again<").replace(": study", ": again") == again


def test_a_chosen_target_is_named_and_in_the_command(cli, tmp_path, study):
    shutil.copytree(study, tmp_path / "aimed")
    assert cli(f"{GRID} --target-loss 1e9 -o aimed")[0] == 0
    assert cli("report aimed --format md -o page.md")[0] == 0
    page = (tmp_path / "page.md").read_text()
    assert "Steps to a loss of 1e+09 (×: ratio to none): " in page
    assert "none's last" not in page
    assert "--target-loss 1e+09 -o aimed" in page


def test_the_page_says_when_the_study_was_made_and_how_long_it_took(tmp_path, study):
    made = bns.Study(study)
    today = datetime.now(timezone.utc).date()
    dates = "|".join(str(today - timedelta(days=days)) for days in (0, 1))
    assert re.fullmatch(
        rf"Trained and measured on ({dates}), in \d+(\.\d+)? (s|min)\.", report._when(made, made.runs())
    )
    older = bns.Study(tmp_path)  # of an earlier version, without a log
    assert re.fullmatch(rf"Files of ({dates})( to ({dates}))?\.", report._when(older, made.runs()))


def test_the_log_of_a_study_is_of_the_commands_that_did_something(cli):
    line = "compare --norms none --problem dln --depth 3 --dimension 4 --samples 20 --steps 4 -o small"
    assert cli(line)[0] == 0
    log = bns.Study("small").log()
    assert len(log) == 1
    assert 0 <= log[0]["seconds"] < 600  # rounded to a tenth
    assert cli(line)[0] == 0  # nothing is left to do
    assert bns.Study("small").log() == log
    assert cli(f"{line} --seeds 0,1")[0] == 0
    first, second = bns.Study("small").log()
    assert first == log[0]
    assert second["began"] >= first["began"]
    Path("small/log.json").write_text("{")
    assert bns.Study("small").log() == []


def test_what_never_happened_is_said(tmp_path):
    cell = {"figure": "steps_to_loss", "median": 20.0, "low": 5.0, "high": math.inf, "confidence": 0.9375, "seeds": 5,
            "never": 2.0}  # fmt: skip
    assert report.interval(cell) == "5 to never (93.8%)"
    assert report.never(cell) == "2 of 5 never reached"
    assert report.run_cell({"steps_to_loss": math.inf}, "steps_to_loss") == "never"
    summary = pd.DataFrame([{**cell, "norm": "l1", "lr": 0.1, "ratio": math.nan, "diverged": 0}])
    assert [*report._by_norm(summary, "steps_to_loss")] == ["l1 20, 2 of 5 never reached"]
    last = summary.assign(figure="final_loss", never=math.nan, diverged=1)
    assert [*report._by_norm(last, "final_loss")] == ["l1 20, 1 of 5 diverged"]


@pytest.mark.slow
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


@pytest.mark.slow
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
        ("empty", "empty/compare.summary.parquet: is of another comparison than empty/compare.parquet; compare again"),
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


# In a browser, at the widths of a telephone, a tablet and a desktop.

WIDTHS = (400, 900, 1400)
#: The elements that reach out of the window, but for those in a box that scrolls visibly.
OUTSIDE = """() => [...document.querySelectorAll("body *")].filter(element => {
    const box = element.getBoundingClientRect();
    if (!box.width || element.closest("script, .scroll table")) return false;
    return box.left < -1 || box.right > document.documentElement.clientWidth + 1;
}).map(element => element.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def written(study, tmp_path_factory):
    page = tmp_path_factory.mktemp("page") / "report.html"
    report.write(bns.Study(study), page, "html")
    return page


@pytest.fixture
def visit(browser, written):
    """Open the page in a window of some width: visit(400, color_scheme="dark")."""
    contexts = []

    def open_page(width: int, **more):
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, **more))
        page = contexts[-1].new_page()
        page.fetched = []
        page.on("request", lambda request: page.fetched.append(request.url))
        page.goto(written.as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.slow
def test_nothing_of_the_page_is_cut_or_scrolls_unseen(visit, width):
    page = visit(width)
    page.click("button.every")
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.evaluate(OUTSIDE) == []
    for box in page.query_selector_all(".scroll"):
        wide = box.evaluate("box => box.scrollWidth > box.clientWidth")
        name = box.get_attribute("aria-label")
        assert box.evaluate("box => getComputedStyle(box).overflowX") == "auto"
        assert (box.get_attribute("tabindex") == "0") == wide, name  # the keyboard reaches and scrolls it
        if wide:
            assert box.evaluate("box => box.nextElementSibling.checkVisibility()"), name
            assert "scrolls sideways" in box.evaluate("box => box.nextElementSibling.textContent")
    images = page.query_selector_all("figure img")
    assert len(images) == len(KINDS)
    for image in images:
        assert image.evaluate("image => image.complete && image.naturalWidth > 0")
        assert image.bounding_box()["width"] <= width
    assert page.fetched == [page.url] + [url for url in page.fetched if url.startswith("data:image/png")]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.slow
def test_a_claim_shows_that_it_opens_and_opens_by_keyboard(visit, width):
    page = visit(width)
    claim = page.locator("details.claim").first
    assert not claim.locator("table").is_visible()
    summary = claim.locator("summary")
    assert summary.evaluate("head => getComputedStyle(head, '::before').content") == '"\u25b8"'
    assert summary.evaluate("head => getComputedStyle(head).cursor") == "pointer"
    summary.focus()
    page.keyboard.press("Enter")
    part = claim.locator("tbody tr").first
    box = part.bounding_box()
    assert part.is_visible()
    assert 0 <= box["x"] < box["x"] + box["width"] <= width
    for cell in part.locator("td").all():
        if cell.is_visible():
            assert cell.evaluate("cell => cell.scrollWidth <= cell.clientWidth + 1")
    page.keyboard.press("Enter")
    assert not part.is_visible()
    page.click("button.every")
    assert page.locator("details.claim[open]").count() == len(CLAIMS)
    page.get_by_text("Close all claims").wait_for(timeout=5000)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.slow
def test_a_figure_opens_at_its_full_size_and_closes_again(visit, width):
    page = visit(width)
    button = page.locator("button.zoom").nth(1)
    button.focus()
    page.keyboard.press("Enter")
    large = page.locator("dialog img")
    natural = button.locator("img").evaluate("image => image.naturalWidth")
    assert large.bounding_box()["width"] == natural > button.locator("img").bounding_box()["width"]
    assert page.locator("dialog button").bounding_box()["x"] < width
    page.keyboard.press("Escape")
    assert not large.is_visible()
    assert button.evaluate("button => button === document.activeElement")
    button.click()
    large.click()
    assert not large.is_visible()


@pytest.mark.parametrize(("scheme", "dark"), [("light", False), ("dark", True)])
@pytest.mark.slow
def test_the_page_follows_the_readers_scheme_and_its_figures_stay_on_white(visit, scheme, dark):
    page = visit(900, color_scheme=scheme)
    shades = "element => getComputedStyle(element).%s.match(/[0-9.]+/g).slice(0, 3).map(Number)"
    back, ink = (page.locator("body").evaluate(shades % name) for name in ("backgroundColor", "color"))
    assert (sum(back) < sum(ink)) == dark
    assert abs(sum(back) - sum(ink)) > 500
    assert page.locator("button.zoom").first.evaluate(shades % "backgroundColor") == [255, 255, 255]
    for pill in page.locator(".verdict").all():
        back, ink = (pill.evaluate(shades % name) for name in ("backgroundColor", "color"))
        assert (sum(back) < sum(ink)) == dark
        assert abs(sum(back) - sum(ink)) > 200


@pytest.mark.slow
def test_paper_has_every_part_of_every_claim(visit):
    page = visit(900)
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.locator("table.parts tbody tr").first.is_visible()
    assert page.locator("details.claim[open]").count() == len(CLAIMS)
    assert not page.locator("nav").is_visible()
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details.claim[open]").count() == 0


@pytest.mark.slow
def test_a_heading_sorts_its_table(visit):
    page = visit(1400)
    table = page.locator("table.sortable").nth(1)
    names = [head.text_content() for head in table.locator("th").all()]
    place = names.index("final loss")
    cells = f"td:nth-child({place + 1})"

    def values() -> list[float]:
        return [float(cell.get_attribute("data-value")) for cell in table.locator(cells).all()]

    head = table.locator("th button").nth(place)
    head.click()
    assert values() == sorted(values())
    head.click()
    assert values() == sorted(values(), reverse=True)
