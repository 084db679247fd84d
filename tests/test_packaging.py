"""A wheel works away from the checkout."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy: setuptools leaves its build folder in the source."""
    source, built = tmp_path_factory.mktemp("source") / "tree", tmp_path_factory.mktemp("built")
    unwanted = shutil.ignore_patterns(".*", "build", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=unwanted)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(built),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (found,) = built.glob("*.whl")
    return found


def test_the_wheel_holds_every_module_and_all_data(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        file.relative_to(ROOT).as_posix()
        for pattern in ("*.py", "*.toml", "*.jinja")
        for file in (ROOT / "tl_steer").rglob(pattern)
    } | {f"tl_steer/data/{file.name}" for kind in ("csv", "json") for file in ROOT.glob(f"data/*.{kind}")}
    wanted |= {f"tl_steer/{file.relative_to(ROOT).as_posix()}" for file in ROOT.glob("data/organisms/*/*")}
    assert len(wanted) > 60
    assert wanted <= held


def test_data_is_read_from_a_wheel_away_from_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import tl_steer as ts; "
        f"assert ts.__file__.startswith({str(tmp_path)!r}), ts.__file__; "
        "assert len(ts.read_reviews()) == 120; "
        "assert ts.load_model('organism-bias', device='cpu').cfg.n_layers == 3; "
        "from tl_steer.experiments import read_experiment; read_experiment('demo')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
