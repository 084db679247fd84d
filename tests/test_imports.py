"""What importing costs, what is public, and the order of the rooms: imports go up, never down."""

import ast
import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import tl_steer

ROOT = Path(tl_steer.__file__).parent
# A room may import those before it, never its own row's other rooms or what comes behind.
ROWS = (
    {"arguments"},
    {"data", "logs"},
    {"models"},
    {"seeds", "statistics", "writing"},
    {"positions"},
    {"prompts"},
    {"activations"},
    {"directions"},
    {"interventions"},
    {"engine"},
    {"generation"},
    {"capture", "choices"},  # capture can generate
    {"recipes"},
    {"evaluation", "analysis", "plots", "verification"},
    {"organisms"},
    {"experiments"},
    {"cli"},
)
ROW_OF = {room: row for row, rooms in enumerate(ROWS) for room in rooms}
ALONE = {"models", "statistics", "writing", "plots"}
HEAVY = ("sklearn", "plotly", "typer", "kaleido", "playwright")


def module_name(path):
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path):
    """Full names of the modules of ours that a file imports, wherever in it."""
    name = module_name(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "tl_steer")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            if base == "tl_steer":  # `from . import plots` names the room only behind it
                yield from (f"{base}.{alias.name}" for alias in node.names)
            elif base.startswith("tl_steer."):
                yield base


def room_of(module):
    return module.split(".")[1]


def uses():
    """(room, room it imports, file) for every import between rooms."""
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        name = module_name(path)
        if name == "tl_steer" or name.startswith("tl_steer.data"):
            continue
        found += [(room_of(name), room_of(other), path.name) for other in imported(path)]
    return [use for use in found if use[0] != use[1]]


def test_every_room_has_its_place_in_the_order():
    rooms = {
        module_name(path).split(".")[1]
        for path in ROOT.rglob("*.py")
        if path.parent != ROOT or path.stem != "__init__"
    }
    assert rooms - {"__main__"} <= set(ROW_OF)
    assert len(uses()) > 20  # the imports are really found


def test_imports_go_up_the_order_of_rooms_and_never_down():
    wrong = [
        f"{room}/{file} imports {other}" for room, other, file in uses() if ROW_OF[other] >= ROW_OF[room]
    ]
    assert not wrong


@pytest.mark.parametrize("room", sorted(ALONE))
def test_a_room_that_stands_alone_imports_nothing_of_ours_but_the_door(room):
    assert [use for use in uses() if use[0] == room and use[1] != "arguments"] == []


def test_analysis_does_not_know_evaluation():
    assert not [use for use in uses() if set(use[:2]) == {"analysis", "evaluation"}]


def test_importing_the_package_leaves_the_heavy_libraries_out():
    """In a fresh process: here they may have been imported by another test."""
    code = "import json, sys, tl_steer; print(json.dumps([name.split('.')[0] for name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "tl_steer" in loaded
    assert not loaded & set(HEAVY)


def modules():
    names = [module.name for module in pkgutil.walk_packages([str(ROOT)], prefix="tl_steer.")]
    return [
        "tl_steer",
        *(name for name in names if not name.startswith("tl_steer.data") and "__main__" not in name),
    ]


@pytest.mark.parametrize("name", modules())
def test_every_public_name_exists(name):
    module = importlib.import_module(name)
    public = getattr(module, "__all__", [])
    assert len(public) == len(set(public))
    assert [each for each in public if not hasattr(module, each)] == []


def test_every_package_says_what_is_public():
    """A folder that has modules has an `__init__` that lists what they are for."""
    without = [
        str(path.parent.relative_to(ROOT))
        for path in ROOT.rglob("__init__.py")
        if len(list(path.parent.glob("*.py"))) > 1
        and not any(
            isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            for node in ast.parse(path.read_text()).body
        )
    ]
    assert without == []


def test_a_star_import_gives_what_all_lists():
    names = {}
    exec("from tl_steer import *", names)
    assert set(tl_steer.__all__) <= set(names)
    assert "tokenize" in names
