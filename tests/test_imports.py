"""Public names, names of modules, the order of packages, and the libraries that an import loads."""

import ast
import functools
import importlib
import inspect
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import tl_steer

ROOT = Path(tl_steer.__file__).parent
# Packages import only packages of the rows above.
ROWS = (
    {"_util", "errors", "data"}, {"statistics", "models"}, {"positions"}, {"prompts"}, {"activations"},
    {"directions"}, {"interventions"}, {"engine"}, {"_generation"}, {"_capture", "_scoring"},
    {"recipes", "_read_choice"}, {"tables"}, {"sweeps"}, {"texts"}, {"evaluation", "analysis", "plots"},
    {"_report", "verification"}, {"organisms"}, {"_public"}, {"experiments"}, {"cli"},
)  # fmt: skip
ROW_OF = {package: row for row, packages in enumerate(ROWS) for package in packages}
INDEPENDENT = {"_util", "errors", "models", "statistics", "plots"}
HEAVY = {"sklearn", "plotly", "typer", "kaleido", "playwright"}


@functools.cache
def parsed():
    """Path, full module name and syntax tree of every file."""
    files = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        files.append((path, name, ast.parse(path.read_text(encoding="utf-8"))))
    return files


def imported(path, name, tree):
    """Full names of the package's modules that a file imports, also inside functions."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "tl_steer")
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = importlib.util.resolve_name("." * node.level + base, package)
            if base == "tl_steer":  # `from . import plots`
                yield from (f"{base}.{alias.name}" for alias in node.names)
                yield "tl_steer._public"  # by `tl_steer.__getattr__`
            elif base.startswith("tl_steer."):
                yield base


@functools.cache
def uses():
    """(package, imported package, file) of every import between packages."""
    imports = [
        (name.split(".")[1], other.split(".")[1], path.name)
        for path, name, tree in parsed()
        if name != "tl_steer" and not name.startswith("tl_steer.data")
        for other in imported(path, name, tree)
    ]
    return [use for use in imports if use[0] != use[1]]


def test_packages_import_only_packages_above_them():
    assert {name.split(".")[1] for _, name, _ in parsed() if name != "tl_steer"} - {"__main__"} <= set(ROW_OF)
    assert len(uses()) > 20
    assert [use for use in uses() if ROW_OF[use[1]] >= ROW_OF[use[0]]] == []
    allowed = ("_util", "errors", "tables")
    assert [use for use in uses() if use[0] in INDEPENDENT and use[1] not in allowed] == []


@pytest.mark.integration
def test_the_first_use_of_a_public_name_loads_pytorch_and_no_heavy_library():
    """In a new process, because other tests import them, and by several threads at the same time."""
    code = """
import json, sys, tl_steer
from concurrent.futures import ThreadPoolExecutor
before = list(sys.modules)
with ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda name: getattr(tl_steer, name), ["models", *reversed(tl_steer.__all__)]))
print(json.dumps([before, list(sys.modules)]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = ({name.split(".")[0] for name in names} for names in json.loads(result.stdout))
    assert "tl_steer" in before
    assert not before & {"torch", "transformer_lens", "transformers", "pandas"}
    assert "torch" in after
    assert not after & HEAVY


def test_an_error_in_a_dependency_is_not_hidden(tmp_path):
    (tmp_path / "transformer_lens.py").write_text("import sys; sys.nothing")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from tl_steer import capture"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "'sys' has no attribute 'nothing'" in result.stderr.splitlines()[-1]


def names_of_modules():
    names = [name for _, name, _ in parsed()]
    assert len(names) > 100
    return [name for name in names if not name.startswith("tl_steer.data") and "__main__" not in name]


def test_module_names_are_unique_and_no_public_function_hides_a_module():
    counts = Counter(name.rpartition(".")[2] for name in names_of_modules())
    assert [name for name, count in counts.items() if count > 1] == []
    for name in names_of_modules():
        package, _, module = name.rpartition(".")
        parent = importlib.import_module(package or name)
        is_public = module in getattr(parent, "__all__", ())
        assert not is_public or inspect.ismodule(getattr(parent, module)), name


def test_every_package_lists_its_public_names_and_each_exists_once():
    packages = {name for path, name, _ in parsed() if path.name == "__init__.py"}
    failures = []
    for name in names_of_modules():
        module = importlib.import_module(name)
        public = getattr(module, "__all__", [])
        failures += [f"{name}.{each}" for each in public if not hasattr(module, each)]
        failures += [f"{name}.{each} twice" for each in set(public) if public.count(each) > 1]
        has_modules = name in packages and len(list(Path(module.__file__).parent.glob("*.py"))) > 1
        failures += [f"{name} lacks __all__"] if has_modules and not hasattr(module, "__all__") else []
    assert failures == []


def test_a_star_import_imports_the_listed_names():
    names = {}
    exec("from tl_steer import *", names)
    assert set(tl_steer.__all__) <= set(names)
    assert "tokenize" in names


def test_the_listed_names_are_the_imported_ones():
    (tree,) = (tree for _, name, tree in parsed() if name == "tl_steer._public")
    imports = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert sorted(alias.name for node in imports for alias in node.names) == sorted(tl_steer.__all__)
    assert {*tl_steer.__all__, "models"} <= set(dir(tl_steer))
    with pytest.raises(AttributeError, match="captur"):
        _ = tl_steer.captur
