"""Imports run downhill. Ruff says who may use Lightning, Hydra and each room; it cannot say this."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT

PACKAGE = ROOT / "src" / "raremask"
#: From the foot to the top, as README's "How it is built" has them; a room uses only those below.
HILL = (
    {"kernels"},
    {"masks", "distances", "runlengths", "tables", "faults", "collapse", "settings"},
    {"losses", "metrics", "nets", "data"},
    {"runfolder", "inference", "postprocess", "archives", "errors"},
    {
        "module",
        "selection",
        "checkpoints",
        "sentinels",
        "figures",
        "submission",
        "receipt",
        "interruption",
        "commandline",
        "scoretables",
    },
    {"callbacks", "shipped", "sweeps", "compare", "description"},
    {"building", "scoring", "prediction"},
    {"terminal"},
    {"training", "evaluation", "tuning", "run"},
    {"commands"},
)
LEVEL = {room: level for level, rooms in enumerate(HILL) for room in rooms}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def used(path: Path) -> Iterator[str]:
    """The rooms that a file imports, also within functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [one.name for one in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{one.name}" for one in node.names]
        else:
            continue
        for name in names:
            package, _, inside = name.partition(".")
            if package == "raremask" and inside.split(".")[0] in LEVEL:
                yield inside.split(".")[0]


def test_every_room_has_its_place_on_the_hill():
    assert {room_of(path) for path in FILES} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(PACKAGE)) for path in FILES])
def test_a_room_uses_only_those_below_it(path):
    own = room_of(path)
    assert [room for room in used(path) if room != own and LEVEL[room] >= LEVEL[own]] == []


def test_losses_and_networks_are_received_not_imported():
    """They are named in configs; only what gives advice before a training knows a loss."""
    users = {room_of(path): set(used(path)) & {"losses", "nets"} - {room_of(path)} for path in FILES}
    assert {room: rooms for room, rooms in users.items() if rooms} == {"description": {"losses"}}
