"""The notebook edition: what Colab and Jupyter show of a chapter says what the page says."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urldefrag

import editions
import lab
import nbformat
import notebook_edition
import notebooks
import pytest
import repository
import yaml
from bs4 import BeautifulSoup
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

CHAPTERS = notebooks.sources()
MYST = re.compile(
    r":::|```\s*\{|\{[a-z]+(?::[a-z]+)?\}`|^\s*\([\w:.-]+\)=\s*$|^\s*:[a-z-]+:(?:\s|$)|^\s*%\s",
    flags=re.MULTILINE,
)

each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=[path.stem for path in CHAPTERS])


@pytest.fixture(scope="session")
def edition() -> dict[str, nbformat.NotebookNode]:
    """The current notebooks of the edition, by the name of their chapter."""
    return {path.stem: nbformat.read(path, as_version=4) for path in editions.build()}


@pytest.fixture(scope="session")
def rendered(edition) -> dict[str, BeautifulSoup]:
    """What Jupyter's own converter makes of them."""
    pages = {name: HTMLExporter().from_notebook_node(one)[0] for name, one in edition.items()}
    return {name: BeautifulSoup(page, "html.parser") for name, page in pages.items()}


def markdown(notebook: nbformat.NotebookNode) -> str:
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def prose(path: Path) -> list[str]:
    """What a chapter says in MyST, in order: its Markdown cells and the captions of its figures."""
    found = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "markdown":
            found.append(cell.source)
        elif caption := cell.metadata.get("mystnb", {}).get("figure", {}).get("caption"):
            found.append(caption)
    return found


def equations(path: Path) -> list[str]:
    """The labels of a chapter's equations, in order."""
    return re.findall(r"\$\$\s*\(([\w:.-]+)\)", "\n".join(prose(path)))


def code(notebook: nbformat.NotebookNode) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == "code"]


@cache
def anchors(page: Path) -> set[str]:
    """The places of a page of the site that a link can lead to."""
    soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
    return {tag["id"] for tag in soup.find_all(id=True)}


def text_of(soup: BeautifulSoup) -> str:
    """The visible prose: no code, and formulas are left as they are."""
    parts = []
    for tag in soup.select(".jp-MarkdownOutput"):
        copy = BeautifulSoup(str(tag), "html.parser")
        for inner in copy.find_all(["code", "pre"]):
            inner.decompose()
        parts.append(copy.get_text())
    return "\n".join(parts)


def chapter_number(path: Path) -> int:
    return int(path.stem.split("-")[0])


def test_there_is_one_for_every_chapter(edition):
    assert list(edition) == [path.stem for path in CHAPTERS]


@each_chapter
class TestEdition:
    def test_has_the_code_of_the_chapter(self, edition, path):
        assert code(edition[path.stem]) == code(nbformat.read(path, as_version=4))

    def test_holds_no_myst(self, edition, rendered, path):
        assert not MYST.findall(markdown(edition[path.stem]))
        text = text_of(rendered[path.stem])
        assert not MYST.findall(text)
        assert not any("mystnb" in cell.metadata for cell in edition[path.stem].cells)
        # None of it is left over as text that a converter could not read either.
        assert not re.findall(r"[\ue000-\uf8ff]|\*\*|</?\w+>", text)

    def test_numbers_the_equations_as_they_come(self, edition, path):
        numbers = {
            label: f"{chapter_number(one)}.{count}"
            for one in CHAPTERS
            for count, label in enumerate(equations(one), 1)
        }
        text = markdown(edition[path.stem])
        tags = re.findall(r"\\tag\{(.*?)\}", text)
        assert tags == [numbers[label] for label in equations(path)]
        named = re.findall(r"\{eq\}`([\w:.-]+)`", "\n".join(prose(path)))
        shown = re.findall(r"\[\((\d+\.\d+)\)\]", text)
        assert shown == [numbers[label] for label in named]

    def test_shows_every_caption_with_its_number_and_the_picture_in_words(
        self, edition, rendered, path
    ):
        chapter = nbformat.read(path, as_version=4)
        metadata = [cell.metadata.get("mystnb", {}) for cell in chapter.cells]
        figures = [one for one in metadata if "figure" in one]
        cells = edition[path.stem].cells
        shown = [
            (before, cell)
            for before, cell in itertools.pairwise(cells)
            if re.search(r"^(?:<a [^>]*></a>)?\*\*Figure ", cell.source)
        ]
        assert len(shown) == len(figures) and figures
        for count, (one, (before, cell)) in enumerate(zip(figures, shown, strict=True), 1):
            assert before.cell_type == "code"
            title = f"Figure {chapter_number(path)}.{count}"
            assert f"**{title}.** " in cell.source
            first = re.split(r"[{$*`\[]", one["figure"]["caption"])[0].strip()
            assert first in BeautifulSoup(cell.source, "html.parser").get_text()
            if alternative := one.get("image", {}).get("alt"):
                boxes = rendered[path.stem].find_all("details")
                (box,) = [box for box in boxes if box.summary.get_text() == f"{title} in words"]
                assert alternative in " ".join(box.p.get_text().split())

    def test_numbers_the_exercises_and_folds_their_solutions(self, edition, rendered, path):
        source = "\n".join(prose(path))
        labels = re.findall(r"\{exercise(?:-start)?\}[^\n]*\n:label: (\S+)", source)
        solved = re.findall(r"\{solution(?:-start)?\} (\S+)", source)
        numbers = [f"{chapter_number(path)}.{count}" for count in range(1, 1 + len(labels))]
        headings = [tag.get_text() for tag in rendered[path.stem].find_all(re.compile("^h[1-6]$"))]
        shown = [found[1] for one in headings if (found := re.match(r"Exercise (\S+) \(", one))]
        assert shown == numbers and numbers
        summaries = [tag.get_text() for tag in rendered[path.stem].find_all("summary")]
        form = re.compile(r"Solution to Exercise ([\d.]+)")
        folded = [found[1] for one in summaries if (found := form.fullmatch(one))]
        assert folded == [numbers[labels.index(label)] for label in solved]

    def test_hides_every_sentence_and_every_cell_of_a_solution(self, edition, rendered, path):
        inside, outside, phrases, cells = False, "", [], 0
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                cells += inside
                continue
            pieces = re.split(
                r"^(:::\{solution\}|```\{solution-(?:start|end)\}|:::$)",
                cell.source,
                flags=re.MULTILINE,
            )
            for piece in pieces:
                if "{solution" in piece:
                    inside = "end" not in piece
                elif piece == ":::":
                    inside = False
                elif inside:
                    phrases += re.findall(r"(?:[A-Za-z]+ ){5}", piece)
                else:
                    outside += f"{' '.join(piece.split())}\n"
        phrases = [one for one in phrases if one not in outside]
        assert phrases
        page = BeautifulSoup(str(rendered[path.stem]), "html.parser")
        folded = " ".join(" ".join(tag.get_text().split()) for tag in page.find_all("details"))
        assert all(one in f"{folded} " for one in phrases)
        for tag in page.find_all("details"):
            tag.decompose()
        open_text = " ".join(text_of(page).split())
        assert not [one for one in phrases if one in open_text]
        hidden = [
            cell
            for cell in edition[path.stem].cells
            if cell.metadata.get("jupyter", {}).get("outputs_hidden")
        ]
        assert len(hidden) == cells
        assert all(cell.metadata.jupyter.source_hidden for cell in hidden)
        assert all(cell.metadata.cellView == "form" for cell in hidden)

    def test_shows_the_titles_of_admonitions(self, edition, path):
        titles = re.findall(r":::\{admonition\} (.+)", "\n".join(prose(path)))
        shown = re.findall(r"^> \*\*(.+?)\*\*$", markdown(edition[path.stem]), flags=re.MULTILINE)
        assert [one for one in shown if one in titles] == titles

    def test_leads_nowhere_that_does_not_exist(self, rendered, path):
        soup = rendered[path.stem]
        pages = yaml.safe_load((notebooks.ROOT / "_toc.yml").read_text(encoding="utf-8"))
        known = {entry["file"] for part in pages["parts"] for entry in part["chapters"]}
        wrong = []
        for tag in soup.select(".jp-MarkdownOutput a[href]:not(.anchor-link)"):
            address, anchor = urldefrag(tag["href"])
            if not address:
                reached = soup.find(id=unquote(anchor)) is not None
            elif address.startswith(repository.site()):
                page = address.removeprefix(repository.site())
                reached = page.removesuffix(".html") in known
            else:
                reached = address.startswith("https://")
            if not reached:
                wrong.append(tag["href"])
        assert not wrong

    def test_opens_with_the_links_to_itself_in_colab_and_to_its_page(self, edition, path):
        line = edition[path.stem].cells[0].source.splitlines()[2]
        page = f"[Read on the site]({repository.site()}chapters/{path.stem}.html)"
        assert line == f"{repository.colab_line(path)} · {page}"

    def test_names_its_cells_as_colab_and_jupyter_look_for_them(self, edition, path):
        cells = edition[path.stem].cells
        assert len({cell.id for cell in cells}) == len(cells)
        assert all(cell.id == cell.metadata["id"] for cell in cells)

    def test_has_the_numbers_of_the_site(self, edition, site, path):
        page = BeautifulSoup((site / f"chapters/{path.stem}.html").read_text(), "html.parser")
        captions = [tag.get_text().strip() for tag in page.select(".caption-number")]
        equations = [re.search(r"[\d.]+", tag.find(string=True))[0] for tag in page.select(".eqno")]
        text = markdown(edition[path.stem])
        assert re.findall(r"\*\*(Figure \S+)\.\*\*", text) == [
            one for one in captions if one.startswith("Figure")
        ]
        assert re.findall(r"### (Exercise [\d.]+)", text) == [
            one for one in captions if one.startswith("Exercise")
        ]
        assert re.findall(r"\\tag\{(.*?)\}", text) == equations

    def test_every_place_on_the_site_to_which_it_leads_is_there(self, rendered, site, path):
        missing = []
        for tag in rendered[path.stem].find_all("a", href=re.compile(re.escape(repository.site()))):
            address, anchor = urldefrag(tag["href"])
            file = site / address.removeprefix(repository.site())
            if unquote(anchor) not in {"", *anchors(file)}:
                missing.append(tag["href"])
        assert not missing

    def test_the_buttons_of_the_page_open_and_download_it(self, site, path):
        page = BeautifulSoup((site / f"chapters/{path.stem}.html").read_text(), "html.parser")
        buttons = page.select(".article-header-buttons a[href]")
        links = [tag["href"] for tag in buttons]
        assert repository.colab_address(path.stem) in links
        downloads = [link for link in links if link.endswith(".ipynb") and "colab" not in link]
        assert downloads == [f"../{editions.ON_THE_SITE}/{path.name}"]
        there = nbformat.read(site / editions.ON_THE_SITE / path.name, as_version=4)
        assert code(there) == code(nbformat.read(path, as_version=4))
        # Nothing opens the chapter itself, which is raw text elsewhere.
        assert not page.find_all("a", href=re.compile(r"colab.*blob/main"))


@pytest.mark.parametrize(
    "left",
    [
        ":::{admonition} Predict",
        "see {eq}`eq:04-cancel`",
        "by {cite:t}`stollenwerk2025coupled`",
        "```{exercise-start} One",
        "(sec-04-who)=",
        ":class: dropdown",
        "{prf:ref}`prop-06-factor`",
    ],
)
def test_myst_that_is_left_would_be_found(left):
    assert MYST.search(f"Before.\n{left}\nAfter.")


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")
def test_the_workflow_publishes_it_on_the_branch_that_the_links_name(tmp_path):
    text = (notebooks.ROOT / ".github/workflows/book.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    uploads = [
        step["with"]["path"] for step in jobs["test"]["steps"] if "path" in step.get("with", {})
    ]
    assert f"_build/html/{editions.ON_THE_SITE}" in uploads
    assert jobs["notebooks"]["needs"] == "test"
    (script,) = [step["run"] for step in jobs["notebooks"]["steps"] if "run" in step]

    def git(*arguments: str, cwd: Path) -> str:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        command = ["git", *identity, *arguments]
        return subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True).stdout

    published, clone, edition = tmp_path / "published", tmp_path / "clone", tmp_path / "notebooks"
    git("init", "--quiet", "--bare", str(published), cwd=tmp_path)
    git("clone", "--quiet", str(published), str(clone), cwd=tmp_path)
    (clone / "main.py").write_text("1\n")
    git("add", ".", cwd=clone)
    git("commit", "--quiet", "--message", "main", cwd=clone)
    git("push", "--quiet", "origin", "HEAD:refs/heads/main", cwd=clone)
    edition.mkdir()
    environment = os.environ | {"RUNNER_TEMP": str(tmp_path), "GITHUB_SHA": "0" * 40}
    for names in (
        ["01-one.ipynb", "02-two.ipynb"],
        ["01-one.ipynb"],
    ):  # the second time, one is gone
        for path in edition.iterdir():
            path.unlink()
        for name in names:
            (edition / name).write_text("{}\n")
        git("checkout", "--quiet", "--force", "-B", "main", "origin/main", cwd=clone)
        subprocess.run(["git", "branch", "-D", "edition"], cwd=clone, capture_output=True)
        command = ["bash", "-e", "-c", script]  # as the workflow runs it
        subprocess.run(command, cwd=clone, env=environment, check=True, capture_output=True)
        branch = repository.NOTEBOOKS_BRANCH
        there = git("ls-tree", "--name-only", "-r", branch, cwd=published).split()
        assert there == names
    assert git("ls-tree", "--name-only", "main", cwd=published).strip() == "main.py"
    colab = repository.colab_address("01-one")
    assert colab.endswith(f"/blob/{repository.NOTEBOOKS_BRANCH}/01-one.ipynb")


@pytest.mark.parametrize(
    "text",
    [
        "5 * 3 * 2 = 30, and **not** bold",
        "snake_case stays, and so do _this_ and __init__",
        "a `tick`, a <tag>, an &amp; and a \\backslash",
        "costs $5 or $6 in all",
        "[i = t] is one, [a](b) no link, [c][d] none either",
        "1. not a list",
        "- not a list either",
        "# not a heading",
        "> not a quote",
        "~~not struck~~",
        "a | b | c",
    ],
)
def test_text_stays_text(text):
    line = notebook_edition._no_block(notebook_edition._escaped(text))
    soup = BeautifulSoup(markdown2html_mistune(line), "html.parser")
    assert soup.get_text().strip() == text
    assert [tag.name for tag in soup.find_all()] == ["p"]


def small_book(root: Path, cells: list, monkeypatch) -> Path:
    """A book of one chapter, with the configuration of this one, in whose place the tools look."""
    config = yaml.safe_load((notebooks.ROOT / "_config.yml").read_text(encoding="utf-8"))
    del config["sphinx"]["local_extensions"]
    config["sphinx"]["extra_extensions"].append("book_extension")
    del config["bibtex_bibfiles"], config["sphinx"]["config"]["bibtex_reference_style"]
    config["sphinx"]["config"]["html_static_path"] = []
    (root / "_config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    toc = "format: jb-book\nroot: index\nchapters:\n  - file: chapters/07-small\n"
    (root / "_toc.yml").write_text(toc, encoding="utf-8")
    (root / "index.md").write_text("# A small book\n\n(far)=\n## Far\n", encoding="utf-8")
    (root / "chapters").mkdir()
    metadata = {"kernelspec": {"name": "python3", "display_name": "", "language": "python"}}
    nbformat.write(
        new_notebook(cells=cells, metadata=metadata), root / "chapters" / "07-small.ipynb"
    )
    monkeypatch.setattr(notebooks, "ROOT", root)
    return root / "made"


KINDS = r"""
# 7. Small

Text with *stress*, **weight**, `code`, $a_1$, [a link](https://example.org) and {ref}`far`.
See {eq}`eq:one`, {eq}`eq:two` and {prf:ref}`thm-one`.

$$
a \\
b
$$ (eq:one)

\begin{align}
c &= d
\end{align}

\begin{equation*}
e
\end{equation*}

:::{note}
An item follows.

1. first

   $$
   x
   = y
   $$ (eq:two)
2. second `with code`
:::

:::{prf:theorem} Of *one*
:label: thm-one

It holds.
:::

:::{prf:remark}
:nonumber:

It is remarkable.
:::

| left | right |
|---|---|
| $\lvert a \rvert$ and $\|b\|$ | `c` or 5 \| 6 |

term
: its definition

```python
x = "```"
```

- one

  second paragraph
- two
  - nested
"""


def test_every_kind_of_text_has_a_form(tmp_path, monkeypatch):
    target = small_book(tmp_path, [new_markdown_cell(KINDS), new_code_cell("1")], monkeypatch)
    (path,) = editions.build(target)
    made = nbformat.read(path, as_version=4)
    text = markdown(made)
    assert not MYST.findall(text)
    soup = BeautifulSoup(markdown2html_mistune(text), "html.parser")
    assert r"\begin{split}a \\" + "\nb" + r"\end{split} \tag{7.1}" in text
    assert r"\begin{aligned}" in text and r"\end{aligned} \tag{7.2}" in text
    assert "$$\ne\n$$" in text, "an equation without a number"
    assert "> 1. first" in text and r">    $$ x = y \tag{7.3} $$" in text, "on one line in a quote"
    assert "[(7.1)](#" in text and "[(7.3)](#" in text and "[Theorem 7.1](#" in text
    assert "**Theorem 7.1 (Of *one*).**" in text
    assert "**Remark.**" in text and "**Note**" in text
    assert f"[Far]({repository.site()}index.html#far)" in text
    assert [tag.get_text() for tag in soup.select("td code")] == ["c"]
    assert len(soup.select("tr")[1].find_all("td")) == 2, "a bar in a formula divides no cell"
    assert r"\vert b\vert" in text
    assert "````python\n" in text
    assert soup.select_one("li li").get_text().strip() == "nested"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("# 7. Small\n\nA footnote.[^1]\n\n[^1]: Here.\n", "no form for 'footnote"),
        ("# 7. Small\n\n![A picture](picture.png)\n", "picture.png is a file of the site"),
        ("# 7. Small\n\n{eq}`eq:gone`\n", "eq:gone"),
        ("# 7. Small\n\n```{hlist}\n- x\n```\n", "no form for 'hlist'"),
    ],
)
def test_what_has_no_form_is_refused_and_never_left_out(tmp_path, monkeypatch, source, message):
    target = small_book(tmp_path, [new_markdown_cell(source)], monkeypatch)
    (tmp_path / "chapters" / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(editions.EditionsError, match=message):
        editions.build(target)
    assert not target.exists(), "no part of an edition is left"


def test_a_cell_that_the_page_leaves_out_is_an_error_and_not_missing(tmp_path, monkeypatch):
    hidden = new_code_cell("1", metadata={"tags": ["remove-input", "remove-output"]})
    target = small_book(tmp_path, [new_markdown_cell("# 7. Small"), hidden], monkeypatch)
    with pytest.raises(editions.EditionsError, match="code cells"):
        editions.build(target)


def test_an_edition_is_written_again_when_a_source_changes_or_a_notebook_of_it(
    tmp_path, monkeypatch, capfd
):
    def written() -> bool:
        editions.build(target)
        return "Writing" in capfd.readouterr().out

    target = small_book(tmp_path, [new_markdown_cell("# 7. Small")], monkeypatch)
    assert written()
    assert not written()
    (tmp_path / "chapters" / "07-small.ipynb").write_text(
        (tmp_path / "chapters" / "07-small.ipynb").read_text().replace("Small", "Large")
    )
    assert written()
    (target / "07-small.ipynb").write_text("not the edition")
    assert written()
    assert "# 7. Large" in markdown(nbformat.read(target / "07-small.ipynb", as_version=4))
    assert not written()


@pytest.fixture
def bench(tmp_path):
    """An edition of two notebooks, brought into a reader's folder."""
    edition, folder = tmp_path / "edition", tmp_path / "lab"
    edition.mkdir()
    for name in ("01-one", "02-two"):
        write(edition / f"{name}.ipynb", "1 + 1")
    assert lab.refresh(edition, folder) == []
    return edition, folder


def write(path: Path, *sources: str, run: bool = False) -> None:
    outputs = [new_output("stream", text="2\n")] if run else []
    cells = [new_code_cell(source, outputs=outputs) for source in sources]
    nbformat.write(new_notebook(cells=cells), path)


def sources(path: Path) -> list[str]:
    return code(nbformat.read(path, as_version=4))


def test_the_readers_notebooks_follow_the_book(bench):
    edition, folder = bench
    write(edition / "01-one.ipynb", "2 + 2")
    assert lab.refresh(edition, folder) == []
    assert sources(folder / "01-one.ipynb") == ["2 + 2"]


def test_what_the_reader_wrote_is_never_written_over(bench):
    edition, folder = bench
    write(folder / "01-one.ipynb", "1 + 1", "my answer")
    write(edition / "01-one.ipynb", "2 + 2")
    for _ in range(2):
        assert lab.refresh(edition, folder) == [folder / "01-one.ipynb"]
        assert sources(folder / "01-one.ipynb") == ["1 + 1", "my answer"]
    (folder / "01-one.ipynb").unlink()
    assert lab.refresh(edition, folder) == []
    assert sources(folder / "01-one.ipynb") == ["2 + 2"]


def test_a_notebook_that_was_only_run_keeps_its_results_until_the_book_changes(bench):
    edition, folder = bench
    write(folder / "02-two.ipynb", "1 + 1", run=True)
    assert lab.refresh(edition, folder) == []
    assert nbformat.read(folder / "02-two.ipynb", as_version=4).cells[0].outputs
    write(edition / "02-two.ipynb", "3 + 3")
    assert lab.refresh(edition, folder) == []
    assert sources(folder / "02-two.ipynb") == ["3 + 3"]


def test_a_notebook_of_unknown_origin_is_the_readers(tmp_path):
    edition, folder = tmp_path / "edition", tmp_path / "lab"
    edition.mkdir()
    folder.mkdir()
    write(edition / "01-one.ipynb", "1 + 1")
    write(folder / "01-one.ipynb", "mine")
    assert lab.refresh(edition, folder) == [folder / "01-one.ipynb"]
    assert sources(folder / "01-one.ipynb") == ["mine"]


def test_jupyterlab_is_there():
    assert shutil.which("jupyter-lab", path=Path(sys.executable).parent)
