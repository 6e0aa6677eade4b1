"""A Sphinx builder that writes the chapters as plain Markdown notebooks.

Colab and Jupyter know nothing of MyST: a directive stands there as raw text, and so does a solution
that the site hides. This builder takes each chapter's document as Sphinx has resolved it, with the
numbers and links that the site has, and writes it as Markdown that both of them show. The code
cells are those of the chapter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import repository
from docutils import nodes
from nbformat import NotebookNode
from sphinx.application import Sphinx
from sphinx.builders import Builder
from sphinx.errors import SphinxError
from sphinx.util.docutils import SphinxDirective
from sphinx_exercise.nodes import is_exercise_node, is_solution_node
from sphinx_proof.nodes import unenumerable_node

CHAPTER = "chapters/"
PREFIX = "scrollTo="
# Stands for the address of a place whose cell is not known yet.
PLACE = re.compile("\ue000(.*?)\ue001")
CONTINUED = "The solution's code is in the folded cell below."


class EditionError(SphinxError):
    """A chapter cannot be written as a plain notebook."""

    category = "Notebook edition"


@dataclass
class Piece:
    """Part of a notebook: Markdown, or a code cell of the chapter, given by its number there."""

    text: str = ""
    code: int | None = None
    ids: list[str] = field(default_factory=list)
    starts_cell: bool = False
    folded: bool = False


class NotebookBuilder(Builder):
    """``notebook-edition``: one notebook for each chapter, in the output folder."""

    name = "notebook-edition"
    format = "notebook"
    epilog = "The notebooks are in %(outdir)s."
    allow_parallel = False

    def get_outdated_docs(self) -> Iterable[str]:
        """All chapters, every time: it is a matter of seconds."""
        return [name for name in self.env.found_docs if name.startswith(CHAPTER)]

    def get_target_uri(self, docname: str, typ: str | None = None) -> str:
        """The page of the published site: a link to it works wherever the notebook is."""
        return f"{repository.site()}{docname}.html"

    def get_relative_uri(self, from_: str, to: str, typ: str | None = None) -> str:
        """Nothing for the page itself, so that only the place on it is left."""
        return "" if from_ == to else self.get_target_uri(to, typ)

    def prepare_writing(self, docnames: set[str]) -> None:
        """Make the output folder."""
        Path(self.outdir).mkdir(parents=True, exist_ok=True)

    def write_doc(self, docname: str, doctree: nodes.document) -> None:
        """Write the notebook of a chapter; other pages have none."""
        if not docname.startswith(CHAPTER):
            return
        source = nbformat.read(self.env.doc2path(docname), as_version=4)
        pieces = list(Chapter(self, docname, source).pieces(doctree))
        shown = [piece.code for piece in pieces if piece.code is not None]
        wanted = [n for n, cell in enumerate(source.cells) if cell.cell_type == "code"]
        if shown != wanted:
            raise EditionError(f"{docname}: code cells {wanted} became {shown}")
        name = docname.removeprefix(CHAPTER)
        colab = repository.colab_line(Path(name))
        for piece in pieces:
            piece.text = piece.text.replace(
                colab, f"{colab} · [Read on the site]({self.get_target_uri(docname)})"
            )
        made = notebook(name, pieces, source)
        nbformat.validate(made)
        nbformat.write(made, Path(self.outdir) / f"{name}.ipynb")


def notebook(name: str, pieces: list[Piece], source: NotebookNode) -> NotebookNode:
    """Put the pieces of a chapter into cells, and lead its links to the cells of their targets."""
    groups: list[list[Piece]] = []
    for piece in pieces:
        alone = piece.code is not None or not groups or groups[-1][-1].code is not None
        if alone or piece.starts_cell:
            groups.append([])
        groups[-1].append(piece)
    number = name.split("-")[0]
    cell_of, cells = {}, []
    for count, group in enumerate(groups):
        identity = f"ch{number}-{count:03d}"
        cell_of |= {one: identity for piece in group for one in piece.ids}
        if group[0].code is not None:
            cells.append(_code_cell(source.cells[group[0].code], group[0].folded))
        else:
            text = "\n\n".join(piece.text for piece in group)
            cells.append(nbformat.v4.new_markdown_cell(text))
        # Colab keeps its own copy of a cell's name, and its links go to that.
        cells[-1].id = cells[-1].metadata["id"] = identity
    linked = set()

    def address(place: re.Match[str]) -> str:
        if place[1] not in cell_of:
            raise EditionError(f"{name}: a link goes to {place[1]!r}, which is not in the notebook")
        linked.add(cell_of[place[1]])
        return f"#{PREFIX}{cell_of[place[1]]}"

    texts = [cell for cell in cells if cell.cell_type == "markdown"]
    for cell in texts:
        cell.source = PLACE.sub(address, cell.source)
    for cell in texts:
        if cell.id in linked:
            # Colab finds the cell by its name; Jupyter and nbconvert look for an element.
            gap = "\n\n" if re.match(r"[#>|<$-]", cell.source) else ""
            cell.source = f'<a id="{PREFIX}{cell.id}"></a>{gap}{cell.source}'
    return nbformat.v4.new_notebook(cells=cells, metadata=source.metadata)


def _code_cell(cell: NotebookNode, folded: bool) -> NotebookNode:
    made = nbformat.v4.new_code_cell(cell.source)
    tags = cell.metadata.get("tags", [])
    if tags:
        made.metadata["tags"] = tags
    if folded or "hide-input" in tags:
        made.metadata["jupyter"] = {"source_hidden": True}
        made.metadata["cellView"] = "form"  # the same for Colab
    if folded:
        made.metadata["jupyter"]["outputs_hidden"] = True
    return made


class Chapter:
    """The resolved document of a chapter, as pieces of Markdown and code."""

    def __init__(self, builder: NotebookBuilder, docname: str, source: NotebookNode) -> None:
        self.builder = builder
        self.docname = docname
        self.source = source
        self.level = 0
        self.nested = 0  # in quotes, lists and tables a formula has to stay on one line
        self.in_table = False

    def number(self, kind: str, identity: str) -> str:
        """The number of a figure, equation, exercise or theorem, as the site has it."""
        numbers = self.builder.env.toc_fignumbers.get(self.docname, {}).get(kind, {})
        if identity not in numbers:
            raise EditionError(f"{self.docname}: the {kind} {identity!r} has no number")
        return ".".join(map(str, numbers[identity]))

    def pieces(self, parent: nodes.Element) -> Iterator[Piece]:
        """What a document, a section or anything else that may hold code cells becomes."""
        for node in parent.children:
            if isinstance(node, nodes.section):
                yield from self._section(node)
            elif isinstance(node, nodes.container) and node.get("nb_element") == "cell_code":
                yield from self._code(node)
            elif is_exercise_node(node):
                yield from self._exercise(node)
            elif is_solution_node(node):
                yield from self._solution(node)
            elif text := self.block(node):
                yield Piece(text, ids=_ids(node))

    def _section(self, node: nodes.section) -> Iterator[Piece]:
        # sphinx-exercise puts the content of an exercise into a section without a title.
        titled = isinstance(node.children[0], nodes.title)
        self.level += titled
        for count, piece in enumerate(self.pieces(node)):
            if count == 0:
                piece.ids += node["ids"]
                piece.starts_cell |= titled
            yield piece
        self.level -= titled

    def _code(self, node: nodes.container) -> Iterator[Piece]:
        index = node["cell_index"]
        yield Piece(code=index)
        for figure in node.findall(nodes.figure):
            identity = figure["ids"][0]
            title = self.builder.config.numfig_format["figure"] % self.number("figure", identity)
            (caption,) = figure.findall(nodes.caption)
            text = f"**{title}.** {self.inline(caption)}"
            metadata = self.source.cells[index].metadata.get("mystnb", {})
            if alternative := metadata.get("image", {}).get("alt"):
                text += "\n\n" + _details(f"{title} in words", _escaped(alternative))
            yield Piece(text, ids=_ids(figure), starts_cell=True)

    def _exercise(self, node: nodes.Element) -> Iterator[Piece]:
        title, *content = node.children
        number = self.number("exercise", node["ids"][0])
        heading = f"{'#' * (self.level + 1)} Exercise {number}{self.inline(title)}"
        yield Piece(heading, ids=_ids(node), starts_cell=True)
        for part in content:
            yield from self.pieces(part)

    def _solution(self, node: nodes.Element) -> Iterator[Piece]:
        registry = self.builder.env.sphinx_exercise_registry
        exercise = registry[node["target_label"]]["node"]
        title = f"Solution to Exercise {self.number('exercise', exercise['ids'][0])}"
        parts = [piece for child in node.children[1:] for piece in self.pieces(child)]
        texts: list[str] = []
        shown, ids = 0, _ids(node)

        def fold() -> Piece:
            nonlocal ids, shown
            summary = title if not shown else f"{title}, continued"
            piece = Piece(_details(summary, "\n\n".join(texts)), ids=ids, starts_cell=True)
            texts.clear()
            shown, ids = shown + 1, []
            return piece

        for piece in parts:
            if piece.code is None:
                texts.append(piece.text)
                ids += piece.ids
                continue
            if texts or not shown:
                texts.append(CONTINUED)
                yield fold()
            yield Piece(code=piece.code, folded=True)
        if texts:
            yield fold()

    def block(self, node: nodes.Node) -> str:
        """The Markdown of something that stands on lines of its own."""
        if isinstance(node, nodes.Invisible | nodes.target) or not isinstance(node, nodes.Element):
            return ""
        if "realtype" in node:
            return self._theorem(node)
        return self._dispatch("_block_", node)(node)

    def blocks(self, parent: nodes.Element, separator: str = "\n\n") -> str:
        """The Markdown of all children."""
        texts = (self.block(child) for child in parent.children)
        return separator.join(text for text in texts if text)

    def inline(self, parent: nodes.Element) -> str:
        """The Markdown of what stands in a line."""
        return "".join(
            _escaped(child.astext(), self.in_table)
            if isinstance(child, nodes.Text)
            else self._dispatch("_inline_", child)(child)
            for child in parent.children
        )

    def _dispatch(self, prefix: str, node: nodes.Element) -> Callable[[Any], str]:
        for kind in type(node).__mro__:
            if found := getattr(self, f"{prefix}{kind.__name__}", None):
                return found
        where = f"{node.source or self.docname}:{node.line or ''}"
        raise EditionError(
            f"{where}: the notebook edition has no form for {type(node).__name__!r} here; "
            "give it one in tools/notebook_edition.py"
        )

    def _block_title(self, node: nodes.title) -> str:
        return f"{'#' * self.level} {self.inline(node)}"

    def _block_paragraph(self, node: nodes.Element) -> str:
        return "\n".join(map(_no_block, self.inline(node).splitlines()))

    _block_compact_paragraph = _block_paragraph

    def _block_math_block(self, node: nodes.math_block) -> str:
        lines = node.astext().strip().splitlines()
        tex = "\n".join(line.rstrip() for line in lines if line.strip())
        # Numbered environments number by themselves, and stand in no other formula.
        tex = re.sub(r"\\(begin|end)\{(align|gather)\*?\}", r"\\\1{\2ed}", tex)
        tex = re.sub(r"\s*\\(?:begin|end)\{equation\*?\}\s*", "", tex)
        if r"\\" in tex and r"\begin{" not in tex:
            tex = rf"\begin{{split}}{tex}\end{{split}}"
        if node.get("label"):
            tex += rf" \tag{{{self.number('displaymath', node['ids'][0])}}}"
        if self.nested:
            return f"$$ {' '.join(tex.split())} $$"
        return f"$$\n{tex}\n$$"

    def _block_literal_block(self, node: nodes.literal_block) -> str:
        code = node.astext().rstrip("\n")
        fence = "`" * max(3, 1 + max(map(len, re.findall("`+", code)), default=0))
        language = node.get("language", "")
        return f"{fence}{'' if language in ('none', 'default') else language}\n{code}\n{fence}"

    def _block_raw(self, node: nodes.raw) -> str:
        return node.astext() if "html" in node.get("format", "") else ""

    def _block_transition(self, node: nodes.transition) -> str:
        return "---"

    def _block_block_quote(self, node: nodes.Element) -> str:
        self.nested += 1
        text = self.blocks(node)
        self.nested -= 1
        return "\n".join(f"> {line}".rstrip() for line in text.splitlines())

    def _block_container(self, node: nodes.container) -> str:
        return self.blocks(node)

    def _block_section(self, node: nodes.section) -> str:
        # sphinx-proof puts the content of a theorem into a section without a title.
        return self.blocks(node)

    def _block_rubric(self, node: nodes.rubric) -> str:
        return f"**{self.inline(node)}**"

    def _block_bullet_list(self, node: nodes.Element) -> str:
        return self._list(node, lambda count: "- ")

    def _block_enumerated_list(self, node: nodes.Element) -> str:
        start = node.get("start", 1)
        return self._list(node, lambda count: f"{start + count}. ")

    def _list(self, node: nodes.Element, mark: Callable[[int], str]) -> str:
        self.nested += 1
        items = []
        for count, item in enumerate(node.children):
            text = self.blocks(item)
            indent = "\n" + " " * len(mark(count))
            items.append(mark(count) + re.sub(r"\n(?=.)", indent, text))
        self.nested -= 1
        return ("\n\n" if any("\n\n" in item for item in items) else "\n").join(items)

    def _block_definition_list(self, node: nodes.Element) -> str:
        items = []
        for item in node.children:
            terms = [self.inline(term) for term in item.findall(nodes.term)]
            text = "\n\n".join(self.blocks(part) for part in item.findall(nodes.definition))
            items.append(f"**{', '.join(terms)}:** {text}")
        return "\n\n".join(items)

    def _block_table(self, node: nodes.table) -> str:
        self.nested += 1
        self.in_table = True
        head, body = [
            [[self.blocks(entry, "<br>") for entry in row.children] for row in part.children]
            for part in (
                next(iter(node.findall(nodes.thead)), nodes.thead()),
                next(iter(node.findall(nodes.tbody))),
            )
        ]
        self.in_table = False
        self.nested -= 1
        width = len((head or body)[0])
        rows = [*(head or [[""] * width]), ["---"] * width, *body]
        table = "\n".join(
            "| " + " | ".join(" ".join(c.split()) for c in row) + " |" for row in rows
        )
        title = next(iter(node.findall(nodes.title)), None)
        if title is None:
            return table
        name = self.builder.config.numfig_format["table"] % self.number("table", node["ids"][0])
        return f"**{name}.** {self.inline(title)}\n\n{table}"

    def _block_Admonition(self, node: nodes.Element) -> str:  # noqa: N802
        content = list(node.children)
        if content and isinstance(content[0], nodes.title):
            title = self.inline(content.pop(0))
        else:
            title = type(node).__name__.capitalize()
        quote = nodes.block_quote("", nodes.paragraph("", "", nodes.strong("", "\ue002")), *content)
        return self._block_block_quote(quote).replace("\ue002", title, 1)

    def _theorem(self, node: nodes.Element) -> str:
        """A proposition or the like, from sphinx-proof."""
        title, *content = node.children
        head = node["realtype"].capitalize()
        if not isinstance(node, unenumerable_node):
            head += f" {self.number(node['countertype'], node['ids'][0])}"
        head += f" {self.inline(title).strip()}".rstrip()
        quote = nodes.block_quote("", nodes.paragraph("", "\ue002"), *content)
        return self._block_block_quote(quote).replace("\ue002", f"**{head}.**", 1)

    def _block_proof_node(self, node: nodes.Element) -> str:
        # The word stands in the text of the first paragraph; on the page a style sets it off.
        (content,) = node.children
        return self._block_block_quote(content).replace("Proof.", "*Proof.*", 1)

    def _inline_inline(self, node: nodes.Element) -> str:
        return self.inline(node)

    _inline_generated = _inline_abbreviation = _inline_inline

    def _inline_emphasis(self, node: nodes.Element) -> str:
        return f"*{self.inline(node)}*"

    def _inline_strong(self, node: nodes.Element) -> str:
        return f"**{self.inline(node)}**"

    _inline_title_reference = _inline_emphasis

    def _inline_literal(self, node: nodes.Element) -> str:
        code = node.astext()
        fence = "`" * (1 + max(map(len, re.findall("`+", code)), default=0))
        space = " " if code.startswith("`") or code.endswith("`") else ""
        code = code.replace("|", r"\|") if self.in_table else code
        return f"{fence}{space}{code}{space}{fence}"

    def _inline_math(self, node: nodes.math) -> str:
        tex = " ".join(node.astext().split())
        if self.in_table:
            tex = tex.replace(r"\|", r"\Vert ").replace("|", r"\vert ")
        return f"${tex.strip()}$"

    def _inline_image(self, node: nodes.image) -> str:
        if "://" not in node["uri"]:
            raise EditionError(f"{self.docname}: the picture {node['uri']} is a file of the site")
        return f"![{_escaped(node.get('alt', ''))}]({node['uri']})"

    _block_image = _inline_image

    def _inline_raw(self, node: nodes.raw) -> str:
        return self._block_raw(node)

    def _inline_target(self, node: nodes.target) -> str:
        return ""

    def _inline_reference(self, node: nodes.reference) -> str:
        uri = node.get("refuri", "")
        if "refid" in node:
            uri = f"#{node['refid']}"
        if uri.startswith("#"):
            uri = f"\ue000{uri[1:]}\ue001"
        return f"[{self.inline(node)}]({uri})" if uri else self.inline(node)


def _details(summary: str, text: str) -> str:
    return f"<details>\n<summary>{summary}</summary>\n\n{text}\n\n</details>"


def _ids(node: nodes.Element) -> list[str]:
    return [one for part in node.findall(nodes.Element) for one in part.get("ids", [])]


def _escaped(text: str, in_table: bool = False) -> str:
    """Text in which Markdown and mathematics find nothing of their own."""
    # Brackets alone are left: in Jupyter, a backslash before one may begin a formula.
    special = r"[\\`*<$]|&(?=#?\w+;)|(?<![^\W_])_|_(?![^\W_])|~~|\](?=[(\[:])"
    text = re.sub(f"({special})", r"\\\1", text)
    return text.replace("|", r"\|") if in_table else text


def _no_block(line: str) -> str:
    """A line of a paragraph that does not begin a heading, a quote or a list."""
    line = re.sub(r"^(#{1,6}(?= |$)|[>+-](?=\s|$)|=+$|-+$)", r"\\\1", line)
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", line)


def show_figures(app: Sphinx, docname: str, content: list[str]) -> None:
    """Give every cell with a figure an output: without one, MyST-NB makes no figure to number."""
    if not docname.startswith(CHAPTER):
        return
    chapter = json.loads(content[0])
    for cell in chapter["cells"]:
        if cell["cell_type"] == "code" and cell["metadata"].get("mystnb", {}).get("figure"):
            shown = {"text/plain": ["figure"]}
            output = {"output_type": "display_data", "metadata": {}, "data": shown}
            cell["outputs"] = [output]
    content[0] = json.dumps(chapter)


class Unexecuted(SphinxDirective):
    """Stands for a directive that shows what the executed chapters gave; no edition needs that."""

    def run(self) -> list[nodes.Node]:
        """Nothing."""
        return []


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the builder."""
    app.add_builder(NotebookBuilder)
    app.connect("source-read", show_figures)
    app.add_directive("claims-ledger", Unexecuted, override=True)
    app.add_directive("execution-times", Unexecuted, override=True)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": False}
