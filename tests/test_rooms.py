"""The house: each room of the library imports from the rooms below it only, and none twice over."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import coupled_adam

PACKAGE = Path(coupled_adam.__file__).parent

# From the top down. What stands on one line may import from each other, without a circle.
ROOMS = [
    {"__main__"},
    {"cli"},
    {"console"},
    {"report"},
    {"experiments"},
    {"evaluation", "export", "benchmark"},
    {"training"},
    {"plots", "widgets"},
    {"figures"},
    {"palette"},
    {"text"},
    # The ground. arms imports optim only when a model is trained.
    {"arms"},
    {"terms"},
    {"optim"},
    {"claims", "files", "geometry", "gpt", "provenance", "statistics", "theory"},
    {"errors", "extras"},
    {"__init__"},
]
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}
# What a room may not know although it lies below: pictures and figures draw what they are given.
FORBIDDEN = {
    "plots": {"text", "optim", "gpt"},
    "figures": {"text", "optim", "gpt", "statistics"},
    "text": {"arms", "optim", "gpt"},
}


def modules() -> dict[str, Path]:
    return {
        ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
        for path in sorted(PACKAGE.rglob("*.py"))
    }


def room_of(module: str) -> str:
    return module.partition(".")[0]


def imports_of(path: Path) -> set[str]:
    """The modules of the library that a file imports anywhere, names below ``coupled_adam``."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are written in full"
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            package, _, rest = name.partition(".")
            if package == "coupled_adam":
                found.add(rest or "__init__")
    return found


@cache
def arrows() -> dict[str, set[str]]:
    """From each module to the modules that it imports; a package stands for its ``__init__``."""
    known = modules()

    def target(name: str) -> str | None:
        while name:
            for candidate in (name, f"{name}.__init__"):
                if candidate in known:
                    return candidate
            name = name.rpartition(".")[0]
        return None

    return {
        module: {found for name in imports_of(path) if (found := target(name))} - {module}
        for module, path in known.items()
    }


def test_every_room_is_in_the_plan():
    assert {room_of(module) for module in modules()} <= LEVEL.keys()


@pytest.mark.parametrize("module", modules())
def test_a_room_imports_from_below_only(module):
    room = room_of(module)
    for other in map(room_of, arrows()[module]):
        if other == room or room == "__init__":  # whose names are imported when asked for
            continue
        # arms makes the optimizers of its entries, and imports them when it does.
        assert LEVEL[other] >= LEVEL[room], f"{module} imports {other}, which is above it"
        assert other not in FORBIDDEN.get(room, ()), f"{module} must not know {other}"


def test_there_is_no_circle():
    # A package's __init__ imports its modules, and these may import the package's siblings; what
    # counts are the modules themselves.
    graph = {
        module: {to for to in targets if not to.endswith("__init__")}
        for module, targets in arrows().items()
        if not module.endswith("__init__")
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' -> '.join([*path, module])}"
        if module not in done:
            for other in graph[module]:
                visit(other, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_an_arrow_back_up_would_be_seen(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("def f():\n    from coupled_adam.training import loop\n")
    assert imports_of(path) == {"training", "training.loop"}
    assert LEVEL["training"] < LEVEL["text"]
