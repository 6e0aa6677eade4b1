"""What the book asks of Sphinx beyond its packages: the ledger, live figures, numbers, MathJax."""

from __future__ import annotations

import os
import platform
import re
import shutil
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import editions
import notebooks
import repository
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from coupled_adam.claims import Claim

CHAPTER = re.compile(r"chapters/(\d+)-")
SHOWN_VERSIONS = [
    "coupled-adam",
    "torch",
    "numpy",
    "scipy",
    "pandas",
    "matplotlib",
    "seaborn",
    "scikit-learn",
    "gensim",
    "tokenizers",
    "jupyter-book",
    "myst-nb",
    "Sphinx",
]


# How the statement of a claim begins that is not measured in the build, but read from a record.
RECORDED = "recorded"


class ClaimsLedger(SphinxDirective):
    """``{claims-ledger}``: every claim of the book with what this build measured."""

    def run(self) -> list[nodes.Node]:
        """One section with a table for each chapter that makes claims."""
        self.env.note_reread()
        try:
            found = {chapter: notebooks.claims(chapter) for chapter in notebooks.sources()}
            made: list[nodes.Node] = [
                self._section(chapter, claims) for chapter, claims in found.items() if claims
            ]
        except notebooks.ChapterError as error:
            raise self.error(str(error)) from None
        statements = [one["statement"] for claims in found.values() for one in claims]
        recorded = sum(statement.startswith(RECORDED) for statement in statements)
        count = f"{len(statements)} claims, all of them checked in this build."
        if recorded:
            count += (
                f" {len(statements) - recorded} were measured in it. The other {recorded} begin "
                f"with “{RECORDED}”: they rest on runs made before, and were read from records."
            )
        return [nodes.paragraph("", count, classes=["claims-total"]), *made]

    def _section(self, chapter: Path, claims: list[dict[str, Any]]) -> nodes.section:
        docname = f"chapters/{chapter.stem}"
        page = self.env.app.builder.get_relative_uri(self.env.docname, docname)
        title = notebooks.title(chapter)
        section = nodes.section(ids=[f"ledger-{chapter.stem}"])
        section += nodes.title("", title)
        rows = []
        for fields in claims:
            anchor = fields["anchor"]
            claim = Claim(**{name: fields[name] for name in Claim.__dataclass_fields__})
            link = nodes.reference("", claim.statement, internal=True, refuri=f"{page}#{anchor}")
            rows.append([link, claim.threshold, claim.value])
        section += _table(["Claim", "Must be", "Measured"], rows, "claims-ledger")
        return section


class LiveFigure(SphinxDirective):
    """``{live-figure} name``: the figure that ``coupled_adam.figures.name()`` makes."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """The figure's own HTML, with its styles and script."""
        name = self.arguments[0]
        # Not at the top: pages without a live figure do not need the library's figures.
        figures = import_module("coupled_adam.figures")
        if not hasattr(figures, name):
            raise self.error(f"coupled_adam.figures has no figure {name!r}")
        return [nodes.raw("", getattr(figures, name)().html(), format="html")]


class Versions(SphinxDirective):
    """``{versions}``: where and with what this build was made."""

    def run(self) -> list[nodes.Node]:
        """A table of the machine and the packages."""
        rows = [
            ["Python", platform.python_version()],
            ["System", f"{platform.system()} {platform.machine()}"],
            ["CPU cores", str(os.cpu_count())],
            *([name, metadata.version(name)] for name in SHOWN_VERSIONS),
        ]
        return [_table(["", "In this build"], rows, "versions")]


class ExecutionTimes(SphinxDirective):
    """``{execution-times}``: how long each chapter took, from start of its kernel to end."""

    def run(self) -> list[nodes.Node]:
        """A table of the chapters with their seconds."""
        self.env.note_reread()
        rows = []
        for chapter in notebooks.sources():
            uri = self.env.app.builder.get_relative_uri(
                self.env.docname, f"chapters/{chapter.stem}"
            )
            link = nodes.reference("", notebooks.title(chapter), internal=True, refuri=uri)
            rows.append([link, f"{notebooks.execution(chapter)['seconds']:.0f}"])
        return [_table(["Chapter", "Seconds"], rows, "execution-times")]


def _table(head: list[str], rows: list[list[str | nodes.Node]], kind: str) -> nodes.table:
    def row(cells: list[str | nodes.Node]) -> nodes.row:
        made = nodes.row()
        for cell in cells:
            content = nodes.Text(cell) if isinstance(cell, str) else cell
            made += nodes.entry("", nodes.paragraph("", "", content))
        return made

    table = nodes.table(classes=[kind])
    group = nodes.tgroup(cols=len(head))
    table += group
    for _ in head:
        group += nodes.colspec(colwidth=1)
    group += nodes.thead("", row(list(head)))
    group += nodes.tbody("", *(row(cells) for cells in rows))
    return table


def number_by_chapter(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Number figures, equations, exercises and the like as 4.1, 4.2, ... in chapter 4.

    Sphinx would count them through the whole book, or through chapters as it counts them; ours
    carry their number in their file name, and there may be gaps.
    """
    changed = []
    for docname, kinds in env.toc_fignumbers.items():
        chapter = CHAPTER.match(docname)
        prefix = (int(chapter[1]),) if chapter else ()
        for numbers in kinds.values():
            for count, anchor in enumerate(numbers, start=1):
                numbers[anchor] = (*prefix, count)
        changed.append(docname)
    return changed


def offer_notebook(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Let the buttons of a chapter open and download its notebook edition.

    The theme's own would give away the chapter itself, whose MyST is raw text elsewhere.
    """
    if not CHAPTER.match(pagename):
        return
    stem = pagename.removeprefix("chapters/")
    for group in context["header_buttons"]:
        for button in group.get("buttons", []):
            if button.get("label") == "download-source-button":
                button["url"] = context["pathto"](f"{editions.ON_THE_SITE}/{stem}.ipynb", 1)
    button = {
        "type": "link",
        "url": repository.colab_address(stem),
        "text": "Colab",
        "tooltip": "Open in Colab",
        "icon": "fas fa-rocket",
        "label": "colab-button",
    }
    context["header_buttons"].insert(0, button)


def find_public_name(
    app: Sphinx, env: BuildEnvironment, node: nodes.Element, content: nodes.TextElement
) -> nodes.Element | None:
    """Lead a type of ours to where the reference has it, in its room and not in the file inside."""
    if node.get("refdomain") != "py":
        return None
    python = env.get_domain("py")
    name = node["reftarget"].split(".")[-1]
    known = [one for one, *_ in python.get_objects() if one.split(".")[-1] == name]
    if len(known) != 1:
        return None
    return python.resolve_xref(env, node["refdoc"], app.builder, "obj", known[0], node, content)


def keep_returns_whole(
    app: Sphinx, what: str, name: str, documented: Any, options: Any, lines: list[str]
) -> None:
    """Keep Napoleon from taking the words before a colon for the type of what is returned.

    Our signatures have the types, and "One row a class: ..." is a sentence.
    """
    for heading in ("Returns:", "Yields:"):
        if heading in lines and (after := lines.index(heading) + 1) < len(lines):
            indent = lines[after][: len(lines[after]) - len(lines[after].lstrip())]
            lines.insert(
                after, f"{indent}\\ "
            )  # reST reads nothing, and Napoleon a line of its own


def name_no_factory(
    app: Sphinx, what: str, name: str, documented: Any, options: Any, signature: str, returns: str
) -> tuple[str, str] | None:
    """Show ``...`` where a data class makes its default: ``<factory>`` is no Python to Sphinx.

    A signature that it cannot parse gets no links, and the inner names of all types.
    """
    return (signature.replace("<factory>", "..."), returns) if signature else None


def skip_fields(
    app: Sphinx, what: str, name: str, documented: Any, skip: bool, options: Any
) -> bool | None:
    """Leave out what Python says of a named tuple's fields: the class itself describes them."""
    return True if str(documented.__doc__).startswith("Alias for field number") else None


def drop_thebe(
    app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any
) -> None:
    """Take the scripts for live code off the pages: Jupyter Book adds them twice, asked or not.

    The second copy is an error in the browser, and they name an address on another host.
    """
    context["script_files"] = [
        script
        for script in context["script_files"]
        if "thebe" not in f"{script.filename} {script.attributes.get('body', '')}".lower()
    ]


def copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    """Put MathJax beside the pages, so that the site asks nothing of other hosts."""
    if error or app.builder.format != "html":
        return
    package = metadata.distribution("sphinx-mathjax-offline")
    source = package.locate_file("sphinx-mathjax-offline/static/mathjax/tex-svg.js")
    if not Path(str(source)).exists():
        raise ExtensionError(f"MathJax is missing: {source}")
    target = Path(app.outdir) / "_static" / app.config.mathjax_path
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(str(source), target)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives and hooks with Sphinx."""
    app.add_directive("claims-ledger", ClaimsLedger)
    app.add_directive("live-figure", LiveFigure)
    app.add_directive("versions", Versions)
    app.add_directive("execution-times", ExecutionTimes)
    # After Sphinx's own numbering, which is one of the handlers of the same event.
    app.connect("env-get-updated", number_by_chapter, priority=900)
    app.connect("missing-reference", find_public_name)
    # Before Napoleon, which is one of the handlers of the same event.
    app.connect("autodoc-process-docstring", keep_returns_whole, priority=400)
    app.connect("autodoc-process-signature", name_no_factory)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("html-page-context", drop_thebe, priority=900)
    # After the theme's own buttons, which are added in handlers of the same event.
    app.connect("html-page-context", offer_notebook, priority=900)
    app.connect("build-finished", copy_mathjax)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
