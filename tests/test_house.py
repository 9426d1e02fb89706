"""The rooms import downward only, and the heavy libraries stay in the rooms that may use them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import deepvit

ROOT = Path(deepvit.__file__).parent
# From the lowest room to the highest; a room may import those before it.
ORDER = [
    "errors", "files", "recipes", "ops", "layers", "losses", "models", "cures", "diagnostics", "data", "training",
    "loading", "experiments", "benchmarking", "cli",
]  # fmt: skip
FREE = {"__init__", "__main__"}  # the public face of the package and the program's entry
TORCH_ONLY = ("ops", "losses", "diagnostics/metrics")
# These decide by module attributes and need no model library; our own operator is torch only as well.
BELOW_DATA = {"diagnostics": {"errors", "files", "ops", "layers", "diagnostics"}}
LIGHTNING = ("training", "diagnostics/monitor.py")


def imports(path: Path) -> set[str]:
    """Absolute names of all modules that a file imports, at its head or inside functions."""
    package = ("deepvit", *path.relative_to(ROOT).parts[:-1])
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            name = ".".join(part for part in (base, node.module) if part)
            found |= {name, *(f"{name}.{alias.name}" for alias in node.names)}
    return found


def files() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def room(name: str) -> str | None:
    parts = name.split(".")
    return parts[1] if parts[0] == "deepvit" and len(parts) > 1 and parts[1] in ORDER else None


def test_every_file_stands_in_a_known_room() -> None:
    found = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in files()}
    assert found <= {*ORDER, *FREE}, found - {*ORDER, *FREE}


def test_imports_point_downward() -> None:
    upward = []
    for path in files():
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if own in FREE:
            continue
        for name in imports(path):
            other = room(name)
            allowed = BELOW_DATA.get(own)
            if other and (ORDER.index(other) > ORDER.index(own) or (allowed and other not in allowed)):
                upward.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not upward, "\n".join(upward)


def test_operator_losses_and_metrics_know_torch_only() -> None:
    wrong = []
    for path in files():
        where = path.relative_to(ROOT).as_posix()
        if where.startswith(TORCH_ONLY):
            for name in imports(path):
                top = name.split(".")[0]
                known = top in {"torch", "deepvit", "triton", "__future__"} or top in sys.stdlib_module_names
                if not known:
                    wrong.append(f"{where} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_lightning_stays_in_its_rooms() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files()
        for name in imports(path)
        if name.split(".")[0] in ("lightning", "pytorch_lightning")
        and not path.relative_to(ROOT).as_posix().startswith(LIGHTNING)
    ]
    assert not wrong, "\n".join(wrong)


def test_data_loads_no_lightning() -> None:
    """In a fresh process and through all that it imports, a source opened and a batch made."""
    code = (
        "import sys\n"
        "from deepvit.data import InputSpec, Loaders\n"
        "next(iter(Loaders('digits', input=InputSpec(8), progress=False).train_dataloader()))\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('lightning', 'pytorch_lightning')])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_no_room_for_odds_and_ends() -> None:
    assert not [p for p in files() if p.stem in ("utils", "helpers", "common", "misc")]


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, timm, torch, deepvit\n"
        "heavy = {'lightning', 'transformers', 'matplotlib', 'sklearn', 'jsonargparse', 'tensorboard', 'triton.language'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    baseline = "import sys, timm, torch\nprint(sorted({'triton.language'} & set(sys.modules)))"
    run = [
        subprocess.run([sys.executable, "-c", c], capture_output=True, text=True, check=True)
        for c in (code, baseline)
    ]
    assert run[0].stdout == run[1].stdout  # whatever torch itself brings may stay
