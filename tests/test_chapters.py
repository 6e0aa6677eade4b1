"""The chapters as they lie in the repository, and their executed copies."""

from __future__ import annotations

import re

import nbformat
import notebooks
import pytest
import repository
import yaml

CHAPTERS = notebooks.sources()
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}

each_chapter = pytest.mark.parametrize("path", CHAPTERS, ids=[path.stem for path in CHAPTERS])


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def lines(cell):
    return [line for line in cell.source.splitlines() if line.strip()]


def test_the_table_of_contents_lists_exactly_the_chapters():
    toc = yaml.safe_load((notebooks.ROOT / "_toc.yml").read_text(encoding="utf-8"))
    listed = [entry["file"] for part in toc["parts"] for entry in part["chapters"]]
    found = [f"chapters/{path.stem}" for path in CHAPTERS]
    assert [name for name in listed if name.startswith("chapters/")] == found
    assert found


@each_chapter
class TestSource:
    def test_is_stored_without_outputs_and_with_plain_metadata(self, path):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        assert notebook.metadata == METADATA
        assert not any(cell.outputs or cell.execution_count for cell in code_cells(notebook))
        assert {key for cell in notebook.cells for key in cell.metadata} <= {"tags", "mystnb"}

    def test_opens_with_its_number_its_colab_line_and_its_question(self, path):
        number = int(path.stem.split("-")[0])
        first = nbformat.read(path, as_version=4).cells[0].source
        assert re.match(rf"# {number}\. \S", first), "the title must begin with the number"
        assert first.splitlines()[2] == repository.colab_line(path)
        assert "?" in first, "a chapter opens with its question"

    def test_has_the_setup_cell_of_this_repository(self, path):
        cell = repository.setup_cell(nbformat.read(path, as_version=4))
        assert cell.source == repository.setup_source(), "run python tools/repository.py"

    def test_has_short_cells(self, path):
        counts = [len(lines(cell)) for cell in code_cells(nbformat.read(path, as_version=4))]
        assert max(counts) <= 25
        assert sum(count > 12 for count in counts) <= len(counts) / 4


@each_chapter
class TestExecuted:
    def test_is_current(self, executed, path):
        assert path not in notebooks.stale()

    def test_every_cell_ran_in_order(self, executed, path):
        cells = [cell for cell in code_cells(notebooks.with_outputs(path)) if lines(cell)]
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))

    def test_no_cell_shows_an_error_or_a_warning(self, executed, path):
        outputs = [out for cell in code_cells(notebooks.with_outputs(path)) for out in cell.outputs]
        assert not [out for out in outputs if out.output_type == "error"]
        assert not [out.text for out in outputs if out.get("name") == "stderr"]
        printed = "".join(out.text for out in outputs if out.output_type == "stream")
        assert not re.search(r"Traceback|\w*Warning:", printed)

    def test_every_picture_has_a_text_alternative(self, executed, path):
        for cell in code_cells(notebooks.with_outputs(path)):
            shows = [
                "image/png" in out.data and "text/html" not in out.data
                for out in cell.outputs
                if "data" in out
            ]
            if any(shows):
                alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
                assert len(alt) >= 20, f"no alt text: {cell.source[:80]!r}"

    def test_makes_claims_and_all_hold(self, executed, path):
        found = notebooks.claims(path)
        assert found
        assert all(one["holds"] for one in found)
