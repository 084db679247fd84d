"""A wheel works away from the checkout."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_all_data(tmp_path):
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        file.relative_to(ROOT).as_posix()
        for pattern in ("*.py", "*.toml", "*.jinja")
        for file in (ROOT / "tl_steer").rglob(pattern)
    } | {f"tl_steer/data/{file.name}" for file in (ROOT / "data").glob("*.csv")}
    assert len(wanted) > 60
    assert wanted <= held


@pytest.mark.slow
def test_data_is_read_from_a_wheel_away_from_the_checkout(tmp_path):
    target = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(target),
        str(ROOT),
    ]
    subprocess.run(install, check=True, capture_output=True)
    code = (
        f"import sys; sys.path.insert(0, {str(target)!r}); import tl_steer as ts; "
        f"assert ts.__file__.startswith({str(target)!r}), ts.__file__; "
        "assert len(ts.read_reviews()) == 120; "
        "from tl_steer.experiments import read_experiment; read_experiment('demo')"
    )
    subprocess.run(
        [sys.executable, "-S", "-c", "import site; site.main(); " + code], check=True, cwd=tmp_path
    )
