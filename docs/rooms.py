"""Draw the package's rooms and what imports what, from the code: `python docs/rooms.py` writes rooms.svg."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path

DOCS = Path(__file__).parent
PACKAGE = DOCS.parent / "qdqpatch"
PICTURE = DOCS / "rooms.svg"

WIDTH, HEIGHT, ACROSS, DOWN = 124, 34, 20, 46
"""The size of a room and what is left between two, in pixels."""

Imports = Mapping[str, frozenset[str]]
"""The rooms that each room imports from."""


def room_of(path: Path) -> str:
    """Return the room a file lies in: a folder of the package, or the file itself."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def read_imports() -> Imports:
    """Read the imports between rooms from the code; those for type checkers alone do not count."""
    rooms = {room_of(path) for path in PACKAGE.rglob("*.py")} - {"__init__", "__main__"}
    found: dict[str, set[str]] = {room: set() for room in rooms}
    for path in PACKAGE.rglob("*.py"):
        if (room := room_of(path)) in rooms:
            found[room] |= (_imported(path) & rooms) - {room}
    return {room: frozenset(others) for room, others in found.items()}


def _imported(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for node in ast.walk(branch)
    }
    rooms = set()
    for node in ast.walk(tree):
        if id(node) in skipped or not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        package, *rest = node.module.split(".")
        if package == "qdqpatch":
            rooms |= {rest[0]} if rest else {alias.name for alias in node.names}
    return rooms


def floors(imports: Imports) -> dict[str, int]:
    """Return how high each room lies: one above the highest that it imports from.

    Raises:
        ValueError: If rooms import each other in a circle.
    """
    heights: dict[str, int] = {}

    def height(room: str, above: tuple[str, ...]) -> int:
        if room in above:
            raise ValueError(f"These rooms import each other: {' -> '.join((*above, room))}.")
        if room not in heights:
            heights[room] = max((height(other, (*above, room)) + 1 for other in imports[room]), default=0)
        return heights[room]

    for room in sorted(imports):
        height(room, ())
    return heights


def shortest(imports: Imports) -> Imports:
    """Leave out imports from rooms that are reached by way of another anyway."""

    def reached(room: str) -> set[str]:
        return {far for other in imports[room] for far in (other, *reached(other))}

    return {
        room: frozenset(other for other in others if not any(other in reached(via) for via in others))
        for room, others in imports.items()
    }


def draw(imports: Imports) -> str:
    """Return the picture: the rooms by floor, the first at the bottom, and arrows to what they import."""
    heights = floors(imports)
    rows = [
        sorted(room for room in heights if heights[room] == floor)
        for floor in range(max(heights.values()) + 1)
    ]
    widest = max(map(len, rows))
    width = widest * (WIDTH + ACROSS) + ACROSS
    height = len(rows) * (HEIGHT + DOWN)
    places = {}
    for floor, row in enumerate(rows):
        left = (width - len(row) * (WIDTH + ACROSS) + ACROSS) / 2
        for column, room in enumerate(row):
            places[room] = (
                left + column * (WIDTH + ACROSS),
                height - (floor + 1) * (HEIGHT + DOWN) + DOWN / 2,
            )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="The rooms of the package, and which imports from which">',
        "<style>rect{fill:#e8eaf6;stroke:#3f51b5}text{font:14px sans-serif;text-anchor:middle;fill:#1a237e}"
        "path{fill:none;stroke:#7986cb;stroke-width:1.2;marker-end:url(#tip)}marker path{fill:#7986cb;"
        "marker-end:none}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>',
    ]
    for room, others in sorted(shortest(imports).items()):
        x, y = places[room][0] + WIDTH / 2, places[room][1] + HEIGHT
        for other in sorted(others):
            to_x, to_y = places[other][0] + WIDTH / 2, places[other][1]
            bend = (to_y - y) / 2
            lines.append(
                f'<path d="M{x:g} {y:g}C{x:g} {y + bend:g} {to_x:g} {to_y - bend:g} {to_x:g} {to_y:g}"/>'
            )
    for room, (x, y) in sorted(places.items()):
        lines.append(f'<rect x="{x:g}" y="{y:g}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>')
        lines.append(f'<text x="{x + WIDTH / 2:g}" y="{y + HEIGHT / 2 + 5:g}">{room}</text>')
    return "\n".join([*lines, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(draw(read_imports()), encoding="utf-8")
