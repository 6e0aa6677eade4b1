"""The report: whole, self-contained, escaped, and readable on every screen and on paper."""

import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import matplotlib
import pytest
from tiny_plan import ADAM, COUPLED, Machine, on

from coupled_adam.extras import MissingExtraError
from coupled_adam.report import page, pictures
from coupled_adam.report.advice import advise
from coupled_adam.report.steps import CostSheet

matplotlib.use("Agg")


@pytest.fixture(scope="module")
def html(done):
    _, result, _ = done
    facts = result.facts()
    return page.render(result, facts, advise(facts), CostSheet(planned_hours=1000))


class Elements(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def elements(html):
    parser = Elements()
    parser.feed(html)
    return parser.found


def test_it_says_verdict_measure_size_rules_and_steps(html, done):
    _, result, _ = done
    facts = result.facts()
    advice = advise(facts)
    text = " ".join(re.sub("<[^>]*>", " ", html).split())
    assert f"<strong>{advice.verdict.capitalize()}</strong>" in html
    assert text.index("Primary measure") < text.index(advice.verdict.capitalize(), 200)
    for one in advice.findings:
        assert one.rule.replace("_", " ") in text
    for wanted in ("can change with size", "chapter 10", "Break-even", f"{facts.pairs} of"):
        assert wanted in text, wanted
    assert "nan" not in text.lower().split() and "None" not in text.split()


def test_it_asks_for_nothing_from_anywhere(html):
    for tag, attributes in elements(html):
        assert tag not in ("script", "link", "iframe", "object"), tag
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:"), attributes
    # Addresses may stand in a picture's metadata; nothing of them is loaded.
    assert "http" not in re.sub(r'src="data:[^"]*"', "", html)
    assert "url(" not in html and "@import" not in html


def test_every_picture_has_words_and_is_the_same_again(html, done):
    _, result, _ = done
    images = [attributes for tag, attributes in elements(html) if tag == "img"]
    assert len(images) == 4
    assert all(len(one["alt"]) > 80 for one in images)
    svg = base64.b64decode(images[0]["src"].partition(",")[2])
    assert svg.lstrip().startswith(b"<?xml") and len(svg) < 300_000
    facts = result.facts()
    assert page.render(result, facts, advise(facts), CostSheet(planned_hours=1000)) == html


def test_light_dark_and_paper(html):
    assert "prefers-color-scheme: dark" in html and "@media print" in html
    assert 'name="viewport"' in html and '<html lang="en">' in html


def test_a_name_of_a_text_is_text(done):
    _, result, _ = done
    odd = replace(result, text="<script>alert(1)</script>")
    facts = odd.facts()
    html = page.render(odd, facts, advise(facts))
    assert "<script>" not in html and "&lt;script&gt;" in html


def test_without_pictures_the_words_stay(done, monkeypatch):
    _, result, _ = done

    def missing(_):
        raise MissingExtraError("needs matplotlib")

    monkeypatch.setattr(pictures, "needs", missing)
    facts = result.facts()
    found = pictures.pictures(result, facts)
    assert all(not one.source and "matplotlib" in one.missing and one.answer for one in found)
    assert "matplotlib" in page.render(result, facts, advise(facts))


@pytest.mark.parametrize("diverging", [{(COUPLED, 1)}, {(COUPLED, k) for k in range(3)},
                                       {(ADAM, 0), (COUPLED, 0)}])  # fmt: skip
def test_runs_that_diverged_have_their_page(plan, corpus, tmp_path, monkeypatch, diverging):
    machine = Machine(1.0, {ADAM: 8.0, COUPLED: 8.0}, diverging=diverging)
    result = on(machine, plan, corpus, tmp_path, monkeypatch)
    facts = result.facts()
    assert "diverged" in page.render(result, facts, advise(facts))


def test_one_pair_has_its_page(plan, corpus, tmp_path, monkeypatch):
    machine = Machine(1.0, {ADAM: 8.0, COUPLED: 8.0})
    result = on(machine, replace(plan, pairs=1), corpus, tmp_path, monkeypatch)
    facts = result.facts()
    html = page.render(result, facts, advise(facts))
    assert "too little for a picture" in html and "Not yet" in html


class TestInABrowser:
    @pytest.fixture(scope="class")
    def file(self, html, tmp_path_factory):
        path = tmp_path_factory.mktemp("page") / "report.html"
        path.write_text(html, encoding="utf-8")
        return path

    @pytest.mark.parametrize("width", [360, 1280])
    @pytest.mark.parametrize("dark", [False, True])
    def test_it_fits_every_screen(self, tab, file, width, dark):
        tab.open(file, width, dark=dark)
        assert tab.value("document.documentElement.scrollWidth") <= width
        assert tab.value("[...document.images].every(one => one.naturalWidth > 0)")
        background = tab.value("getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(255, 255, 255)") != dark

    def test_it_prints_on_about_four_pages(self, tab, file):
        tab.open(file)
        printed = tab.send("Page.printToPDF", preferCSSPageSize=True)["data"]
        pages = len(re.findall(rb"/Type\s*/Page\b", base64.b64decode(printed)))
        assert 2 <= pages <= 5
