"""What holds the project together: one address, one version, exact requirements, fresh results."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path

import build_book
import environment
import nbformat
import notebooks
import pytest
import repository
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from packaging.requirements import Requirement

pytest_plugins = ["pytester"]

ROOT = notebooks.ROOT
# Other people's repositories that the book links to, as owner/name.
OTHER_REPOSITORIES = {"karpathy/nanoGPT"}


def own_text_files() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, encoding="utf-8", check=True
    ).stdout.split("\0")
    suffixes = {".cff", ".css", ".ipynb", ".js", ".md", ".py", ".toml", ".txt", ".yml", ".bib", ""}
    paths = [ROOT / name for name in listed if name]
    return [path for path in paths if path.is_file() and path.suffix in suffixes]


def wrong_links(text: str) -> list[str]:
    ours = "/".join(repository.owner_and_name())
    found = []
    for link in repository.LINK.finditer(text):
        name = f"{link[1]}/{link[2].removesuffix('.git')}"
        others = set() if link[0].startswith("colab") else OTHER_REPOSITORIES
        if name != ours and name not in others and "{" not in name:
            found.append(link[0])
    pages = re.findall(r"https://[\w-]+\.github\.io/[\w.-]+/", text)
    return found + [link for link in pages if link != repository.site()]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_every_link_to_a_repository_is_to_the_one_in_the_config():
    texts = {path: path.read_text(encoding="utf-8") for path in own_text_files()}
    wrong = {str(path): wrong_links(text) for path, text in texts.items() if wrong_links(text)}
    assert not wrong
    assert texts


@pytest.mark.parametrize(
    "link",
    [
        "https://github.com/" + "somebody/coupled-adam",
        "https://colab.research.google.com/github/" + "somebody/coupled-adam/blob/main/x.ipynb",
        "git+https://github.com/" + "coupled-adam/other",
        "https://somebody.github" + ".io/coupled-adam/",
    ],
)
def test_a_wrong_link_is_found(link):
    assert wrong_links(f"see {link} for more")


def test_the_links_of_the_config_and_the_citation_agree():
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert config["html"]["baseurl"] == repository.site() == citation["url"]
    assert config["sphinx"]["config"]["ogp_site_url"] == repository.site()
    assert citation["repository-code"] == repository.address()


def test_the_version_is_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["version"] == citation["version"] == metadata.version("coupled-adam")


def pins_of(*names: str) -> list[Requirement]:
    text = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in names)
    return [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]


def test_what_is_installed_is_what_the_requirements_pin():
    pins = pins_of(*environment.SETS.values())
    wanted = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    assert all(str(pin.specifier).startswith("==") for pin in pins)
    different = [pin for pin in wanted if metadata.version(pin.name) not in pin.specifier]
    assert not [str(pin) for pin in different], "install requirements.txt, or pin what you tested"


def test_the_library_needs_nothing_that_is_not_pinned():
    pins = pins_of(*environment.SETS.values())
    pinned = {pin.name.lower(): str(pin.specifier).removeprefix("==") for pin in pins}
    assert len(pinned) == len(pins), "pinned twice"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [need for extra in project["optional-dependencies"].values() for need in extra]
    for need in map(Requirement, [*project["dependencies"], *extras]):
        assert pinned[need.name.lower()] in need.specifier


def test_the_book_needs_nothing_that_only_the_tests_install():
    pinned = {pin.name.lower() for pin in pins_of(environment.SETS["book"])}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needs = [*project["dependencies"], *extras["book"], *extras["cli"]]
    assert {Requirement(need).name.lower() for need in needs} <= pinned


def test_the_oldest_releases_that_are_tested_are_those_that_are_promised():
    text = (ROOT / ".github" / "oldest.txt").read_text(encoding="utf-8")
    tested = {line for line in text.splitlines() if not line.startswith("#")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    promised = set()
    for need in map(Requirement, [*project["dependencies"], *extras["book"], *extras["cli"]]):
        (oldest,) = (part.version for part in need.specifier if part.operator == ">=")
        promised.add(f"{need.name}=={oldest}{'' if oldest.count('.') == 2 else '.*'}")
    assert tested == promised
    workflow = (ROOT / ".github" / "workflows" / "book.yml").read_text(encoding="utf-8")
    assert "--constraint .github/oldest.txt" in workflow


def test_an_old_python_is_refused_with_a_sentence(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    with pytest.raises(SystemExit, match=r"needs Python 3\.11 or later"):
        environment.set_up()


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """What pip would be asked to install in a new project, call by call."""
    for name in ("requirements.txt", "requirements-test.txt", "pyproject.toml"):
        (tmp_path / name).write_text("")
    calls = []
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    monkeypatch.setattr(environment, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(environment, "PYTHON", tmp_path / ".venv" / "python")
    monkeypatch.setattr(environment.venv, "create", lambda path, **_: make_python(path, calls))
    monkeypatch.setattr(environment, "_pip", lambda *words: calls.append(words[1:]))
    return calls


def make_python(folder: Path, calls: list) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "python").write_text("")
    calls.append(("a new .venv",))


BOOK = ("--requirement", "requirements.txt")
TESTS = (*BOOK, "--requirement", "requirements-test.txt")
ITSELF = ("--no-deps", "--no-build-isolation", "--editable", ".")


def test_the_tests_add_to_what_the_book_needs_and_nothing_is_installed_twice(installed):
    environment.set_up("book")
    assert installed == [("a new .venv",), BOOK, ITSELF]
    environment.set_up("test")
    assert installed[3:] == [TESTS]
    environment.set_up("book")
    environment.set_up("test")
    assert len(installed) == 4


@pytest.mark.parametrize(
    ("changed", "again"),
    [
        ("requirements-test.txt", [TESTS]),
        ("requirements.txt", [BOOK, ITSELF, TESTS]),
        ("pyproject.toml", [BOOK, ITSELF, TESTS]),
    ],
)
def test_what_has_changed_is_installed_again(installed, changed, again):
    environment.set_up("test")
    del installed[:]
    (environment.ROOT / changed).write_text("# another")
    environment.set_up("test")
    assert installed == again


def test_another_python_gets_another_environment(installed, monkeypatch):
    environment.set_up("test")
    del installed[:]
    monkeypatch.setattr(environment, "_version", lambda: "3.99")
    environment.set_up("book")
    assert installed == [("a new .venv",), BOOK, ITSELF]


def test_an_installation_that_was_cut_off_is_taken_up_again(installed, monkeypatch):
    def fails(*words: str) -> None:
        raise SystemExit("pip failed")

    with monkeypatch.context() as patched:
        patched.setattr(environment, "_pip", fails)
        with pytest.raises(SystemExit):
            environment.set_up("book")
    environment.set_up("book")
    assert installed == [("a new .venv",), BOOK, ITSELF]


@pytest.fixture
def small_project(tmp_path, monkeypatch):
    """A project with one chapter, in whose place the tools look."""
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)
    monkeypatch.setattr(notebooks, "BUILD", tmp_path)
    monkeypatch.setattr(notebooks, "EXECUTED", tmp_path / "executed")
    for folder in ("chapters", "src/coupled_adam"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "src/coupled_adam/__init__.py").write_text("value = 1\n")
    write_chapter(tmp_path, "print(1)")
    return tmp_path


def write_chapter(project: Path, code: str, prose: str = "# 1. A chapter") -> Path:
    path = project / "chapters" / "01-one.ipynb"
    cells = [new_markdown_cell(prose), new_code_cell(code)]
    nbformat.write(new_notebook(cells=cells), path)
    return path


def test_a_chapter_is_stale_when_its_code_or_the_library_changes_but_not_its_prose(small_project):
    path = write_chapter(small_project, "print(1)")
    key = notebooks.key(path)
    write_chapter(small_project, "print(1)", prose="# 1. Another title")
    assert notebooks.key(path) == key
    write_chapter(small_project, "print(2)")
    assert notebooks.key(path) != key
    write_chapter(small_project, "print(1)")
    assert notebooks.key(path) == key
    (small_project / "src/coupled_adam/__init__.py").write_text("value = 2\n")
    assert notebooks.key(path) != key


def test_outputs_of_other_code_are_never_shown(small_project):
    path = write_chapter(small_project, "print(1)")
    notebooks.EXECUTED.mkdir()
    shutil.copy(path, notebooks.executed_copy(path))
    assert notebooks.with_outputs(path).cells
    write_chapter(small_project, "print(2)")
    with pytest.raises(notebooks.ChapterError, match="has changed since"):
        notebooks.with_outputs(path)


def test_a_chapter_that_raises_is_reported_and_not_kept(small_project):
    path = write_chapter(small_project, "raise RuntimeError('the reason')")
    with pytest.raises(notebooks.ChapterError, match="the reason"):
        notebooks.execute(path, small_project / "src")
    assert notebooks.stale() == [path]


def test_a_chapter_runs_alone_with_the_library_it_is_given(small_project):
    code = "import coupled_adam, os; print(coupled_adam.value, os.listdir())"
    path = write_chapter(small_project, code)
    assert notebooks.execute(path, small_project / "src") > 0
    assert notebooks.stale() == []
    assert notebooks.with_outputs(path).cells[1].outputs[0].text == "1 ['01-one.ipynb']\n"


def test_two_that_ask_for_a_chapter_at_once_execute_it_once(small_project):
    count = small_project / "count"
    path = write_chapter(small_project, f"_ = open({str(count)!r}, 'a').write('x')")
    with ThreadPoolExecutor(2) as both:
        asked = [both.submit(notebooks.execute, path, small_project / "src") for _ in range(2)]
        seconds = {one.result() for one in asked}
    assert count.read_text() == "x"
    assert len(seconds) == 1


def test_chapters_run_beside_each_other_except_those_that_time(small_project, monkeypatch, capsys):
    for name in ("02-timed", "03-long", "04-last"):
        write_chapter(small_project, "print(1)").replace(small_project / f"chapters/{name}.ipynb")
    write_chapter(small_project, "print(1)")
    monkeypatch.setattr(notebooks, "TIMED", {"02-timed"})
    monkeypatch.setattr(notebooks, "LONGEST", {"03-long"})
    monkeypatch.setattr(notebooks, "LANES", 2)
    monkeypatch.setattr(notebooks, "unpacked_wheel", lambda: nullcontext(small_project / "src"))
    running, told = set(), []
    meet = threading.Barrier(2)

    def execute(chapter, library):
        running.add(chapter.stem)
        told.append((chapter.stem, set(running)))
        if chapter.stem in ("01-one", "03-long"):
            meet.wait(60)  # neither goes on without the other
        running.discard(chapter.stem)
        return 1.0

    monkeypatch.setattr(notebooks, "execute", execute)
    notebooks.execute_stale()
    order = [name for name, _ in told]
    assert order[0] == "02-timed" and told[0][1] == {"02-timed"}
    assert set(order[1:3]) == {"01-one", "03-long"} and order[3] == "04-last"
    assert "02-timed: 1 s" in capsys.readouterr().out


def test_the_chapters_that_are_told_apart_exist_and_come_first():
    order = [path.stem for path in notebooks.in_order_of_execution()]
    first = len(notebooks.TIMED), len(notebooks.TIMED | notebooks.LONGEST)
    assert set(order[: first[0]]) == notebooks.TIMED
    assert set(order[first[0] : first[1]]) == notebooks.LONGEST
    assert sorted(order) == [path.stem for path in notebooks.sources()]


def test_a_worker_gets_the_whole_of_a_file_or_a_chapter(pytester, request, monkeypatch):
    """pytest-xdist must be asked in a way that the pytest at hand understands."""
    (source,) = (p for p in request.config.pluginmanager.get_plugins() if hasattr(p, "group_of"))
    kept = [f"tests/test_chapters.py::TestExecuted::test_{n}[{c}]" for c in "ab" for n in "xy"]
    assert len({source.group_of(nodeid) for nodeid in kept}) == 2
    pytester.makeconftest(
        inspect.getsource(source.group_of)
        + "import pytest\n"
        + inspect.getsource(source.pytest_xdist_make_scheduler)
    )
    test = "import pytest, os\n@pytest.mark.parametrize('n', range(5))\ndef test_it(n):\n"
    test += "    print(__name__, os.environ['PYTEST_XDIST_WORKER'])\n"
    chapters = "import pytest, os\n@pytest.mark.parametrize('path', ['a', 'b'])\n"
    chapters += "class TestExecuted:\n"
    for name in ("one", "two", "three"):
        chapters += f"    def test_{name}(self, path):\n"
        chapters += "        print(path, os.environ['PYTEST_XDIST_WORKER'])\n"
    pytester.makepyfile(test_x=test, test_y=test, test_chapters=chapters)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # whose imports take seconds
    done = pytester.runpytest_subprocess("-p", "xdist", "-n", "2", "-rP", "-p", "no:cacheprovider")
    done.assert_outcomes(passed=16)
    told = [line.split() for line in done.outlines if re.fullmatch(r"\S+ gw[01]", line)]
    workers = {name: {worker for what, worker in told if what == name} for name, _ in told}
    assert workers.keys() == {"test_x", "test_y", "a", "b"}
    assert all(len(names) == 1 for names in workers.values()), workers
    assert {*workers["test_x"], *workers["test_y"], *workers["a"], *workers["b"]} == {"gw0", "gw1"}


def test_a_claim_stated_twice_is_refused(small_project):
    path = write_chapter(small_project, "claim(...)")
    notebook = nbformat.read(path, as_version=4)
    data = {notebooks.CLAIM_TYPE: {"anchor": "claim-x"}}
    output = nbformat.v4.new_output("display_data", data=data)
    notebook.cells[1].outputs = [output, output]
    notebooks.EXECUTED.mkdir()
    nbformat.write(notebook, notebooks.executed_copy(path))
    with pytest.raises(notebooks.ChapterError, match="states a claim twice: claim-x"):
        notebooks.claims(path)


def test_the_setup_cell_and_colab_line_are_written_once(small_project, monkeypatch):
    path = write_chapter(small_project, "print(1)", prose="# 1. A chapter\n\nWhy?")
    repository.rewrite(path)
    once = path.read_bytes()
    repository.rewrite(path)
    assert path.read_bytes() == once
    cells = nbformat.read(path, as_version=4).cells
    assert cells[0].source == f"# 1. A chapter\n\n{repository.colab_line(path)}\n\nWhy?"
    monkeypatch.setattr(repository, "address", lambda: "https://github.com/" + "else/where")
    repository.rewrite(path)
    text = path.read_text(encoding="utf-8")
    assert "coupled-adam/coupled-adam" not in text and text.count("else/where") == 2


def test_the_site_key_sees_the_pages():
    assert all((ROOT / name).exists() for name in build_book.PAGES if name != "data")
