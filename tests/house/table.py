"""The house in figures: rooms, lines, arrows, cycles, and file names that occur twice.

``python tests/house/table.py`` prints them; the tests beside it hold them to the rules. Nothing is imported: the
files are read as syntax, so that imports inside functions, under ``TYPE_CHECKING`` and by name count as well.
"""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGE = "deepvit"
SOURCES = Path(__file__).parents[2] / "src" / PACKAGE
ORDER = (
    "errors", "files", "terminal", "recipes", "options", "parsing", "provenance", "ops", "layers", "losses", "models",
    "cures", "capturing", "collapse", "report", "data", "masks", "tasks", "runs", "exporting", "hubs", "training",
    "experiments", "benchmarking", "commands", "cli",
)  # fmt: skip
"""The rooms from the lowest to the highest; a room may import those before it."""
FACE = (PACKAGE, f"{PACKAGE}.__main__")
"""The public face and the program's entry belong to no room; what somebody takes from the face is followed."""
LARGEST_SHARE = 0.15
BY_NAME = re.compile(rf"{PACKAGE}(\.[a-z_]\w*)+(:\w+)?")

Graph = Mapping[str, Iterable[str]]


@dataclass(frozen=True)
class House:
    """The modules of the package and what imports what.

    Args:
        sources: folder of the package.
    """

    sources: Path = SOURCES

    @cached_property
    def files(self) -> dict[str, Path]:
        """Module → its file."""
        found = {}
        for path in sorted(self.sources.rglob("*.py")):
            parts = path.relative_to(self.sources).with_suffix("").parts
            found[".".join((PACKAGE, *(part for part in parts if part != "__init__")))] = path
        return found

    @cached_property
    def public(self) -> dict[str, str]:
        """Public name → module that holds it, read off the face's table ``_PUBLIC``."""
        for node in ast.parse(self.files[PACKAGE].read_text()).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_PUBLIC":
                return dict(ast.literal_eval(node.value))
        return {}

    @cached_property
    def names(self) -> dict[str, set[str]]:
        """Module → absolute names of all that it imports, wherever in the file, other libraries' included."""
        return {module: self._imported(module, path) for module, path in self.files.items()}

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """Module → modules of the package that it imports."""
        return {
            module: {found for name in names if (found := self.resolve(name)) and found != module}
            for module, names in self.names.items()
        }

    @cached_property
    def modules(self) -> dict[str, set[str]]:
        """``imports`` without the face."""
        return {m: to - set(FACE) for m, to in self.imports.items() if m not in FACE}

    @cached_property
    def arrows(self) -> Counter[tuple[str, str]]:
        """(room, other room) → number of module pairs where the first imports the second."""
        pairs = ((room_of(m), room_of(other)) for m, to in self.modules.items() for other in to)
        return Counter(pair for pair in pairs if pair[0] != pair[1])

    @cached_property
    def rooms(self) -> dict[str, set[str]]:
        """Room → rooms that it imports."""
        found: dict[str, set[str]] = {room_of(module): set() for module in self.modules}
        for own, other in self.arrows:
            found[own].add(other)
        return found

    @cached_property
    def lines(self) -> dict[str, int]:
        """Room → lines of Python; the face under its own name."""
        found: Counter[str] = Counter()
        for module, path in self.files.items():
            found[PACKAGE if module in FACE else room_of(module)] += len(path.read_text().splitlines())
        return dict(found)

    @cached_property
    def shares(self) -> dict[str, float]:
        """Room → its part of all lines."""
        total = sum(self.lines.values())
        return {room: lines / total for room, lines in self.lines.items()}

    @cached_property
    def upward(self) -> list[tuple[str, str]]:
        """Pairs of modules where the first imports one of a higher room."""
        return sorted(
            (module, other)
            for module, to in self.modules.items()
            for other in to
            if {room_of(module), room_of(other)} <= set(ORDER)
            and ORDER.index(room_of(other)) > ORDER.index(room_of(module))
        )

    @property
    def unknown(self) -> list[str]:
        """Rooms that the order does not name."""
        return sorted(set(self.rooms) - set(ORDER))

    @cached_property
    def twice(self) -> dict[str, list[str]]:
        """File name → the places below the package where it occurs, for names that occur more than once."""
        found = defaultdict(list)
        for path in self.files.values():
            if path.name != "__init__.py":
                found[path.name].append(path.relative_to(self.sources).as_posix())
        return {name: places for name, places in sorted(found.items()) if len(places) > 1}

    def resolve(self, name: str) -> str | None:
        """The module of the package that a dotted name lies in; None for another library's.

        What is taken from the face (``from deepvit import capture``) lies in the module that the face takes it from.
        """
        parts = name.split(".")
        if parts[0] != PACKAGE:
            return None
        if len(parts) > 1 and ".".join(parts[:2]) not in self.files and parts[1] in self.public:
            return self.resolve(self.public[parts[1]])
        while ".".join(parts) not in self.files:
            parts.pop()
        return ".".join(parts)

    def _imported(self, module: str, path: Path) -> set[str]:
        package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
                base = ".".join(part for part in (base, node.module) if part)
                # The name behind may be a module: from deepvit import ops.
                found |= {f"{base}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == PACKAGE:
                found.add(f"{PACKAGE}.{node.attr}")  # import deepvit; deepvit.capture(...)
            elif isinstance(node, ast.Constant) and self._means_a_module(node.value):
                found.add(node.value.replace(":", "."))
        return found

    def _means_a_module(self, text: object) -> bool:
        """Whether a constant is a lazy import: ``module:name`` or a module's full name.

        A package's name alone also stands where its files are read (templates, schemas) and is none.
        """
        if not isinstance(text, str) or not BY_NAME.fullmatch(text):
            return False
        return ":" in text or (text in self.files and self.files[text].name != "__init__.py")


def room_of(module: str) -> str:
    """The room of a module: the folder or file right below the package."""
    return module.split(".")[1]


def cycles(graph: Graph) -> list[list[str]]:
    """One shortest circle of each group of nodes that reach one another, as ``[a, b, ..., a]``."""
    reach = {node: _reached(graph, node) for node in graph}
    found, seen = [], set()
    for node in sorted(graph):
        group = {other for other in reach[node] if node in reach.get(other, ())}
        if node in seen or not group:
            continue
        seen |= group
        found.append(min((_circle(graph, start) for start in sorted(group)), key=len))
    return found


def _reached(graph: Graph, start: str) -> set[str]:
    """Nodes that can be reached from one in at least one step."""
    reached: set[str] = set()
    todo = list(graph[start])
    while todo:
        node = todo.pop()
        if node not in reached:
            reached.add(node)
            todo += graph.get(node, ())
    return reached


def _circle(graph: Graph, start: str) -> list[str]:
    """The shortest way from a node back to itself, which must exist."""
    ways = [[start]]
    while True:
        longer = []
        for way in ways:
            for node in sorted(graph.get(way[-1], ())):
                if node == start:
                    return [*way, start]
                if node not in way:
                    longer.append([*way, node])
        ways = list({way[-1]: way for way in reversed(longer)}.values())


def table(house: House) -> str:
    """The whole table as text."""
    out = [f"{'room':<14}{'files':>6}{'lines':>7}{'share':>8}  imports (pairs of modules)"]
    known = [room for room in ORDER if room in house.lines]
    for room in [*known, *sorted(set(house.lines) - set(known))]:
        files = sum(room == (PACKAGE if module in FACE else room_of(module)) for module in house.files)
        to = {other: n for (own, other), n in house.arrows.items() if own == room}
        arrows = ", ".join(f"{other} {n}" for other, n in sorted(to.items(), key=lambda item: -item[1]))
        mark = " !" if house.shares[room] > LARGEST_SHARE and room != PACKAGE else ""
        out.append(f"{room:<14}{files:>6}{house.lines[room]:>7}{house.shares[room]:>7.1%}{mark:<2} {arrows}")
    out.append(f"{'sum':<14}{len(house.files):>6}{sum(house.lines.values()):>7}")
    sections = {
        "rooms that the order does not know": house.unknown,
        f"rooms above {LARGEST_SHARE:.0%} of the lines": [
            f"{room} {share:.1%}" for room, share in house.shares.items() if share > LARGEST_SHARE
        ],
        "upward arrows": [f"{own} -> {other}" for own, other in house.upward],
        "cycles between rooms": [" -> ".join(circle) for circle in cycles(house.rooms)],
        "cycles between modules": [" -> ".join(circle) for circle in cycles(house.modules)],
        "file names that occur more than once": [
            f"{name}: {', '.join(places)}" for name, places in house.twice.items()
        ],
    }
    for title, entries in sections.items():
        out += ["", f"{title}: {len(entries) or 'none'}", *(f"  {entry}" for entry in entries)]
    return "\n".join(out)


if __name__ == "__main__":
    print(table(House()))
