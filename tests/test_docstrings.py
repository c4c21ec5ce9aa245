"""Docstrings say what goes in, if that is more than three things, and what is refused."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from conftest import ROOT

ROOMS = sorted((ROOT / "src" / "raremask").rglob("*.py"))
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


def public(node: ast.AST, inside: str = "") -> Iterator[tuple[str, ast.FunctionDef, str]]:
    """Name, definition and docstring of each public function and method; those of a class stand for its `__init__`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from public(child, child.name)
        elif isinstance(child, FUNCTION) and (not child.name.startswith("_") or child.name == "__init__"):
            owner = node if child.name == "__init__" else child
            yield f"{inside}.{child.name}".lstrip("."), child, ast.get_docstring(owner) or ""


def raised(function: ast.FunctionDef) -> bool:
    """Whether the function itself refuses something; what it raises anew or is not for users does not count."""
    nodes, found = list(ast.iter_child_nodes(function)), False
    while nodes:
        node = nodes.pop()
        if isinstance(node, (*FUNCTION, ast.Lambda)):
            continue
        name = node.exc.func.id if _is_raise(node) else ""
        found = found or name in ("BadInput", "ValueError", "TypeError", "Fault")
        nodes += ast.iter_child_nodes(node)
    return found


def _is_raise(node: ast.AST) -> bool:
    return isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)


@pytest.mark.parametrize("room", ROOMS, ids=[str(path.relative_to(ROOMS[0].parent)) for path in ROOMS])
def test_a_docstring_names_arguments_and_errors(room: Path):
    missing = []
    for name, function, words in public(ast.parse(room.read_text())):
        arguments = {one.arg for one in (*function.args.args, *function.args.kwonlyargs)} - {"self", "cls"}
        if len(arguments) > 3 and "Args:" not in words and not _overrides(name):
            missing.append(f"{name}: Args")
        if raised(function) and "Raises:" not in words:
            missing.append(f"{name}: Raises")
    assert not missing


def _overrides(name: str) -> bool:
    """Methods whose arguments Lightning and PyTorch decide."""
    return name.split(".")[-1].startswith(("on_", "forward", "training_step", "validation_step", "predict_step"))
