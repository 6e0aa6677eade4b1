"""The rooms of the library: each imports only from those below it, so that there is no circle."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import notebooks
import pytest

SOURCE = notebooks.ROOT / "src" / "coupled_adam"
# From the ground up. Rooms on one floor know nothing of each other. The package itself, which hands
# out the optimizer and the version, is called by its own name.
FLOORS = (
    {"claims", "errors", "extras", "geometry", "optim", "theory"},
    {"coupled_adam", "files", "gpt", "statistics"},
    {"arms", "provenance"},
    {"palette"},
    {"figures", "plots", "text"},
    {"training", "widgets"},
    {"benchmark", "evaluation", "export"},
    {"experiments"},
    {"cli"},
    {"__main__"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def files_by_room(source: Path = SOURCE) -> dict[str, list[Path]]:
    """The Python files of each room, which is a module or a folder of them."""
    found: dict[str, list[Path]] = {}
    for path in sorted(source.rglob("*.py")):
        room = path.relative_to(source).parts[0].removesuffix(".py")
        found.setdefault("coupled_adam" if room == "__init__" else room, []).append(path)
    return found


def imported(tree: ast.AST, rooms: set[str]) -> Iterator[str]:
    """The rooms that a module imports from, at its top or in a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for package, *rest in (name.split(".") for name in names):
            if package == "coupled_adam":
                yield rest[0] if rest and rest[0] in rooms else "coupled_adam"


def arrows_up(source: Path = SOURCE) -> list[str]:
    """Imports from a room that is not below, as "room <- what it imports from (file)"."""
    files = files_by_room(source)
    wrong = []
    for room, paths in files.items():
        for path in paths:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for other in set(imported(tree, set(files))) - {room}:
                if FLOOR[other] >= FLOOR[room]:
                    wrong.append(f"{room} <- {other} ({path.relative_to(source)})")
    return wrong


def test_the_table_names_the_rooms_that_exist():
    assert set(FLOOR) == set(files_by_room())
    assert sum(map(len, FLOORS)) == len(FLOOR), "a room stands on one floor"


def test_a_room_imports_only_from_those_below_it():
    assert not arrows_up()


def test_within_the_library_imports_name_the_room():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in SOURCE.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    assert not [node for node in nodes if isinstance(node, ast.ImportFrom) and node.level]


@pytest.mark.parametrize(
    ("room", "line", "wrong"),
    [
        ("gpt", "from coupled_adam.text import Corpus", "gpt <- text (gpt.py)"),
        ("files", "import coupled_adam.training.loop", "files <- training (files.py)"),
        ("plots", "def f():\n    from coupled_adam import experiments", "plots <- experiments"),
        ("optim", "from coupled_adam import CoupledAdamW", "optim <- coupled_adam"),
        ("text", "from coupled_adam import figures", "text <- figures (text.py)"),
    ],
)
def test_an_arrow_back_up_is_found(tmp_path, room, line, wrong):
    for name in FLOOR:
        file = "__init__" if name == "coupled_adam" else name
        (tmp_path / f"{file}.py").write_text(line if name == room else "")
    (found,) = arrows_up(tmp_path)
    assert found.startswith(wrong)
