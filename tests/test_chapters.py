"""The chapters as they lie in the repository, and their executed copies."""

from __future__ import annotations

import re

import nbformat
import notebooks
import pytest
import repository
import yaml
from bs4 import BeautifulSoup

from coupled_adam.experiments import evidence, recorded
from coupled_adam.statistics import interval

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

    def test_says_beside_each_claim_what_would_break_it(self, path):
        cells = code_cells(nbformat.read(path, as_version=4))
        bare = [
            cell.id
            for cell in cells
            if "claim(" in cell.source and not re.search(r"^\s*# \S", cell.source, re.MULTILINE)
        ]
        assert not bare

    def test_ends_with_a_summary_three_exercises_and_their_solutions(self, path):
        whole = "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells)
        assert "## Summary\n" in whole
        exercises = re.findall(r"\{exercise(?:-start)?\} (Warm-up|Core|Stretch)", whole)
        assert exercises == ["Warm-up", "Core", "Stretch"]
        assert len(re.findall(r"\{solution(?:-start)?\} ", whole)) == 3

    def test_claims_on_records_say_so_in_their_first_word(self, path):
        cells = code_cells(nbformat.read(path, as_version=4))
        reads = re.compile(r"recorded_runs|recorded\.read")
        reads_records = any(reads.search(cell.source) for cell in cells)
        recorded = [cell for cell in cells if '"recorded ' in cell.source]
        assert bool(recorded) == reads_records


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


SMALL_GPT = next(path for path in CHAPTERS if path.stem == "08-a-small-gpt")


@pytest.mark.parametrize("path", [SMALL_GPT], ids=[SMALL_GPT.stem])
def test_the_readme_shows_what_the_small_gpt_measured(executed, path):
    readme = (notebooks.ROOT / "README.md").read_text(encoding="utf-8").replace("−", "-")
    cells = {cell.id: cell for cell in notebooks.with_outputs(path).cells}
    table = BeautifulSoup(cells["table"].outputs[0].data["text/html"], "html.parser")
    names = [head.get_text() for head in table.thead.tr.find_all("th")][1:]
    for title, measure in (
        ("norm of the mean embedding", "relative_mean_norm"),
        ("isotropy", "isotropy"),
    ):
        row = table.tbody.find("th", string=measure).find_parent("tr").find_all("td")
        entries = dict(zip(names, (entry.get_text().split()[0] for entry in row), strict=True))
        shown = re.search(rf"\| {title}.*? \| ([\d.]+) \| ([\d.]+) \|", readme).groups()
        for name, value in zip(("Adam", "Coupled Adam"), shown, strict=True):
            # Another processor may move the last digits.
            assert float(value) == pytest.approx(float(entries[name]), rel=0.02)


def test_the_readme_shows_what_the_evidence_says():
    readme = " ".join((notebooks.ROOT / "README.md").read_text(encoding="utf-8").split())
    shown = re.findall(r"by ([\d.]+)(?: nats)? \(([\d.]+) to ([\d.]+)\) with ([\d.]+) m", readme)
    assert [size for *_, size in shown] == ["0.1", "0.4", "1.6"]
    for *numbers, size in shown:
        table = recorded.read(f"{size}M")
        gain = interval(evidence.gains(table, "coupled", "adamw"))
        assert [float(number) for number in numbers] == pytest.approx(list(gain), abs=6e-4)
    longer = re.search(r"from 0.4 million tokens on: ([\d.]+) and ([\d.]+)\.", readme).groups()
    for number, size in zip(longer, ("0.4M", "1.6M"), strict=True):
        gains = evidence.gains(recorded.read(size), "adamw-memory", "adamw")
        assert float(number) == pytest.approx(gains.mean(), abs=6e-4)
