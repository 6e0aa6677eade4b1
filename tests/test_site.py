"""The built site: complete, self-contained, without dead links, readable without pictures."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urldefrag, urlsplit

import browser
import notebooks
import pytest
import repository
import yaml
from bs4 import BeautifulSoup

# Names of formats, not addresses.
NOT_LOADED = ("http://www.w3.org/", "https://schema.org")
# What Sphinx adds to the pages of the table of contents.
GENERATED = {"index", "genindex", "search", "prf-prf", "py-modindex"}
# The rooms of the library in its reference.
ROOMS = ["optim", "geometry", "theory", "text", "gpt", "arms", "training", "evaluation"]
ROOMS += ["experiments", "statistics", "claims", "figures", "widgets", "errors", "export"]
ROOMS += ["benchmark"]


@cache
def page(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@cache
def anchors(path: Path) -> set[str]:
    """The places of a page that a link can lead to."""
    tags = page(path).find_all(True)
    return {tag[name] for tag in tags for name in ("id", "name") if tag.has_attr(name)}


@pytest.fixture(scope="session")
def pages(site) -> dict[str, BeautifulSoup]:
    files = [path for path in sorted(site.rglob("*.html")) if "_static" not in path.parts]
    return {path.relative_to(site).as_posix(): page(path) for path in files}


def is_external(url: str) -> bool:
    return bool(urlsplit(url).scheme not in ("", "data") or url.startswith("//"))


def loaded_from_elsewhere(soup: BeautifulSoup) -> list[str]:
    """Addresses on other hosts that a browser would fetch on its own account."""
    relations = {"stylesheet", "preload", "prefetch", "modulepreload", "icon", "manifest"}
    relations |= {"preconnect", "dns-prefetch", "apple-touch-icon"}
    urls = [tag["href"] for tag in soup.find_all("link", href=True) if relations & set(tag["rel"])]
    for name in ("script", "img", "iframe", "source", "video", "audio", "embed", "input", "track"):
        urls += [tag["src"] for tag in soup.find_all(name, src=True)]
    urls += [
        part.split()[0] for tag in soup.select("[srcset]") for part in tag["srcset"].split(",")
    ]
    urls += [tag["data"] for tag in soup.find_all("object", data=True)]
    for tag in soup.find_all(["image", "use"]):
        urls += [tag[name] for name in ("href", "xlink:href") if tag.has_attr(name)]
    for tag in soup.find_all("script", src=False) + soup.find_all("style"):
        urls += re.findall(r"""https?://[^\s"'`)]+""", tag.string or "")
    urls += [
        url for tag in soup.select("[style]") for url in re.findall(r"url\((.*?)\)", tag["style"])
    ]
    return [url for url in urls if is_external(url) and not url.startswith(NOT_LOADED)]


def unnamed_pictures(soup: BeautifulSoup) -> list[str]:
    """Pictures without a text alternative, or with a file name or a hash for one."""
    found = []
    for tag in soup.find_all("img"):
        alt = tag.get("alt", "").strip()
        if not alt or re.fullmatch(r"\S+\.\w{2,4}|[0-9a-f]{16,}|\S*/\S*", alt):
            found.append(str(tag))
    for tag in soup.select("article svg, figure svg"):
        around = [tag, *tag.parents]
        named = any(one.get("aria-label") or one.get("aria-labelledby") for one in around if one)
        hidden = any(one.get("aria-hidden") == "true" for one in around if one)
        if not (named or hidden or tag.find("title")):
            found.append(str(tag)[:200])
    return found


def dead_links(site: Path, name: str, soup: BeautifulSoup) -> list[str]:
    """Links to pages, files or anchors of the site that do not exist."""
    dead = []
    for tag in soup.find_all("a", href=True):
        address, anchor = urldefrag(tag["href"])
        if is_external(address):
            continue
        file = unquote(address.split("?")[0])
        target = (site / name).parent / file if file else site / name
        if not target.is_file():
            dead.append(tag["href"])
        elif anchor and target.suffix == ".html":
            there = anchors(target.resolve() if file else site / name)
            if not {unquote(anchor), anchor} & there:
                dead.append(tag["href"])
    return dead


def test_the_pages_are_those_of_the_table_of_contents(pages):
    toc = yaml.safe_load((notebooks.ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = {entry["file"] for part in toc["parts"] for entry in part["chapters"]}
    found = {name.removesuffix(".html") for name in pages}
    assert found - GENERATED == listed | {toc["root"]}


def test_no_page_loads_anything_from_another_host(pages):
    found = {name: loaded_from_elsewhere(soup) for name, soup in pages.items()}
    assert not {name: urls for name, urls in found.items() if urls}


def test_no_style_or_script_file_loads_anything_from_another_host(site):
    pattern = re.compile(
        r"""@import\s*(?:url\()?["']?(?:https?:)?//"""
        r"""|url\(\s*["']?(?:https?:)?//"""
        r"""|(?:fetch|import|importScripts)\(\s*["'`](?:https?:)?//"""
    )
    files = [*site.rglob("*.css"), *site.rglob("*.js")]
    found = {path.name: pattern.findall(path.read_text(encoding="utf-8")) for path in files}
    assert not {name: urls for name, urls in found.items() if urls}
    assert files


def test_every_picture_has_a_text_alternative(pages):
    found = {name: unnamed_pictures(soup) for name, soup in pages.items()}
    assert not {name: tags for name, tags in found.items() if tags}


def test_every_link_within_the_site_arrives(site, pages):
    found = {name: dead_links(site, name, soup) for name, soup in pages.items()}
    assert not {name: links for name, links in found.items() if links}


def test_every_link_into_the_repository_is_to_a_file_in_it(pages):
    link = re.compile(
        re.escape("/".join(repository.owner_and_name())) + r"/(?:blob|tree)/main/(.+)"
    )
    missing = set()
    for soup in pages.values():
        for tag in soup.find_all("a", href=link):
            path = unquote(urldefrag(link.search(tag["href"])[1])[0])
            if not (notebooks.ROOT / path).exists():
                missing.add(tag["href"])
    assert not missing


def test_no_page_shows_an_error_or_a_warning(pages):
    for name, soup in pages.items():
        assert not soup.select(".stderr, .traceback, .system-message, .problematic"), name
        printed = " ".join(tag.get_text() for tag in soup.select(".cell_output"))
        assert not re.search(r"Traceback \(most recent|\w*Warning:", printed), name


def test_the_ledger_lists_every_claim_and_links_to_it(pages):
    rows = pages["book/ledger.html"].select("table.claims-ledger tbody tr")
    links = [row.find("a")["href"] for row in rows]
    made = [
        f"../chapters/{path.stem}.html#{one['anchor']}"
        for path in notebooks.sources()
        for one in notebooks.claims(path)
    ]
    assert links == made
    recorded = [row for row in rows if row.find("a").get_text().startswith("recorded")]
    total = pages["book/ledger.html"].select_one(".claims-total").get_text()
    assert total.startswith(f"{len(rows)} claims") and f"The other {len(recorded)} begin" in total
    shown = {tag["id"] for soup in pages.values() for tag in soup.select("p.claim")}
    assert {link.split("#")[1] for link in links} == shown


@pytest.mark.parametrize("room", ROOMS)
def test_the_reference_describes_every_public_name(pages, room):
    module = import_module(f"coupled_adam.{room}")
    own = [name for name, one in vars(module).items() if is_own(one, module)]
    public = [name for name in getattr(module, "__all__", own) if callable(getattr(module, name))]
    described = {tag["id"] for tag in pages["book/api.html"].select("dt[id^=coupled_adam]")}
    assert not {f"coupled_adam.{room}.{name}" for name in public} - described
    assert public


def is_own(one: object, module: ModuleType) -> bool:
    name = getattr(one, "__name__", "_")
    return getattr(one, "__module__", None) == module.__name__ and not name.startswith("_")


def test_the_reference_keeps_sentences_whole_and_links_the_types_of_the_library(pages):
    soup = pages["book/api.html"]
    text = soup.get_text()
    # What stands before a colon in "Returns" is no type, and what Python says of itself is no help.
    assert "Return type" not in text and "Returns:" in text
    assert "Alias for field number" not in text
    # Signatures that Sphinx could not parse.
    assert "<factory>" not in text and "~coupled_adam" not in text
    links = {tag["href"] for tag in soup.select("dt.sig a.reference[href]")}
    assert "#coupled_adam.training.TrainingConfig" in links
    assert "#coupled_adam.text.Corpus" in links


def test_the_numbers_of_a_chapter_begin_with_its_own(pages):
    for path in notebooks.sources():
        soup = pages[f"chapters/{path.stem}.html"]
        number = int(path.stem.split("-")[0])
        captions = [tag.get_text() for tag in soup.select(".caption-number")]
        equations = [tag.find(string=True) for tag in soup.select(".eqno")]
        shown = {found[0] for text in captions + equations if (found := re.search(r"\d+", text))}
        assert shown <= {str(number)}, path.stem


def test_mathjax_is_part_of_the_site(site, pages):
    assert (site / "_static" / "vendor" / "tex-svg.js").stat().st_size > 1_000_000
    scripts = [tag["src"] for tag in pages["book/notation.html"].find_all("script", src=True)]
    assert any(src.startswith("../_static/vendor/tex-svg.js") for src in scripts)


@pytest.mark.parametrize(
    "markup",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//cdn.example/x.css">',
        '<img src="https://example.org/badge.svg" alt="A badge">',
        '<script>import("https://cdn.example/x.js")</script>',
        '<style>@import url("https://fonts.example/x.css");</style>',
        '<p style="background: url(https://example.org/x.png)"></p>',
    ],
)
def test_a_resource_of_another_host_is_found(markup):
    assert loaded_from_elsewhere(BeautifulSoup(markup, "html.parser"))


@pytest.mark.parametrize(
    "markup",
    [
        '<img src="x.png">',
        '<img src="x.png" alt="">',
        '<img src="x.png" alt="../_images/d3456fb.png">',
        '<img src="x.png" alt="d3456fb01234b1cadad3f0a0b047e9f19880">',
        "<article><svg><circle/></svg></article>",
    ],
)
def test_a_picture_without_a_text_alternative_is_found(markup):
    assert unnamed_pictures(BeautifulSoup(markup, "html.parser"))


def test_a_dead_link_is_found(tmp_path):
    html = '<p id="here"></p><a href="#here">1</a><a href="#gone">2</a><a href="gone.html">3</a>'
    (tmp_path / "a.html").write_text(html)
    assert dead_links(tmp_path, "a.html", page(tmp_path / "a.html")) == ["#gone", "gone.html"]


@pytest.fixture(scope="session")
def in_browser(site, tmp_path_factory):
    """A function from a page's name to its document as a browser without network leaves it."""
    program = browser.executable()
    if program is None:
        pytest.skip("no Chromium on this machine")

    def load(name: str) -> BeautifulSoup:
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        command += [f"--user-data-dir={tmp_path_factory.mktemp('browser')}"]
        command += ["--virtual-time-budget=20000", "--host-resolver-rules=MAP * ~NOTFOUND"]
        command += [(site / name).resolve().as_uri()]
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=120
        )
        assert done.returncode == 0, done.stderr
        return BeautifulSoup(done.stdout, "html.parser")

    return load


# The code cells that are seen and are wider than their box.
_CLIPPED = """[...document.querySelectorAll("div.cell:not(.tag_hide-input) div.cell_input pre")]
    .filter(cell => cell.scrollWidth > cell.clientWidth + 1).map(cell => cell.textContent)"""


@pytest.mark.parametrize("width", [1280, 1440])
def test_no_line_of_code_is_cut_off_on_a_screen(site, tab, width):
    clipped = {}
    for file in sorted((site / "chapters").glob("*.html")):
        tab.open(file, width)
        assert tab.value("document.querySelectorAll('div.cell_input pre').length") > 5
        if found := tab.value(_CLIPPED):
            clipped[file.name] = found
    assert not clipped


def test_a_browser_draws_the_formulas(in_browser):
    drawn = in_browser("book/notation.html")
    assert len(drawn.select("mjx-container svg path, mjx-container svg use")) > 10
    assert not drawn.select("mjx-merror, [data-mjx-error]")


def test_a_browser_draws_the_first_figure_of_the_landing_page(in_browser):
    drawn = in_browser("book/index.html")
    shapes = drawn.select("article svg circle, article svg path, article svg line")
    assert shapes
