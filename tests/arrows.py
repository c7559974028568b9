"""Who imports whom in the package, read from its sources: lazy imports count, those for type checkers do not.

python -m tests.arrows    # the rooms, their sizes, and what they import
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import networkx  # which torch needs

Arrow = tuple[str, str]
"""A module, and a module that it imports."""

Arrows = dict[str, set[str]]
"""Each module of a package, and the modules of that package that it imports."""


def imports_of(package: Path) -> Arrows:
    """The arrows between the modules of a package.

    Args:
        package: its folder, which lies where its name is importable from.
    """
    modules = {_name(file, package.parent): file for file in sorted(package.rglob("*.py"))}
    return {name: set(_imported(file, modules)) - {name} for name, file in modules.items()}


def _name(file: Path, above: Path) -> str:
    parts = file.relative_to(above).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(file: Path, modules: Mapping[str, Path]) -> Iterator[str]:
    for statement in _statements(ast.parse(file.read_text(encoding="utf-8")).body):
        for name in names_of(statement):
            while name and name not in modules:
                # What is imported from a module is a name in it, if no module.
                name = name.rpartition(".")[0] if not isinstance(statement, ast.Constant) else ""
            if name:
                yield name


def names_of(statement: ast.AST) -> list[str]:
    """The dotted names that an import names, with what it takes from them; text, which may name a lazy import."""
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    if isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
        return [f"{statement.module}.{alias.name}" for alias in statement.names]
    if isinstance(statement, ast.Constant) and isinstance(statement.value, str):
        name = statement.value.partition(":")[0]
        return [name] if "." in name else []
    return []


def _statements(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """All nodes below some, without what stands under `if TYPE_CHECKING:`."""
    for node in nodes:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            yield from _statements(node.orelse)
        else:
            yield node
            yield from _statements(ast.iter_child_nodes(node))


def room(module: str) -> str:
    """The room that a module lies in; that of the package itself is the package."""
    return ".".join(module.split(".")[:2])


def upward(arrows: Arrows, floors: Iterable[Iterable[str]]) -> set[Arrow]:
    """The arrows that lead to a room on a higher floor, or to another one on the same.

    Args:
        arrows: see `imports_of`.
        floors: rooms that do not know each other, the lowest floor first.

    Raises:
        KeyError: if a room is on no floor.
    """
    height = {name: number for number, names in enumerate(floors) for name in names}
    return {
        (one, other)
        for one, others in arrows.items()
        for other in others
        if room(one) != room(other) and height[room(other)] >= height[room(one)]
    }


def circles(arrows: Arrows) -> set[frozenset[str]]:
    """Modules that reach each other, in sets that are as large as they can be."""
    graph = networkx.DiGraph([(one, other) for one, others in arrows.items() for other in others])
    return {frozenset(found) for found in networkx.strongly_connected_components(graph) if len(found) > 1}


def drawing(package: Path) -> str:
    """One line for each room: its files, its lines, and the rooms that it imports."""
    lines = []
    arrows = imports_of(package)
    for name in sorted({room(module) for module in arrows}):
        modules = [module for module in arrows if room(module) == name]
        files = [file for file in package.rglob("*.py") if _name(file, package.parent) in modules]
        length = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
        imported = {room(other) for module in modules for other in arrows[module]} - {name}
        lines.append(f"{name:22} {len(files):4} files {length:6} lines  → {', '.join(sorted(imported))}".rstrip(" →"))
    return "\n".join(lines)


if __name__ == "__main__":
    print(drawing(Path(__file__).parent.parent / "emo_hf"))
