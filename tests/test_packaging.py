"""A distribution works away from the checkout."""

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def distribution(tmp_path_factory):
    """(source archive, wheel) as `python -m build` makes them, of a copy: it leaves folders in the source."""
    source, built = tmp_path_factory.mktemp("source") / "tree", tmp_path_factory.mktemp("built")
    unwanted = shutil.ignore_patterns(".*", "build", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=unwanted)
    command = [sys.executable, "-m", "build", "--outdir", str(built), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (archive,), (found,) = built.glob("*.tar.gz"), built.glob("*.whl")
    return archive, found


@pytest.fixture(scope="module")
def wheel(distribution):
    return distribution[1]


def test_the_source_archive_holds_what_the_wheel_is_made_of(distribution, wheel):
    with tarfile.open(distribution[0]) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    own = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert {name.replace("tl_steer/data/", "data/") for name in own} <= held


def test_the_wheel_holds_every_module_and_all_data(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        file.relative_to(ROOT).as_posix()
        for pattern in ("*.py", "*.toml", "*.jinja", "*.json")
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


def test_a_wheel_in_an_empty_environment_runs_the_demo(wheel, tmp_path):
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command):
        done = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]
        return done.stdout

    constraints = ROOT / "constraints.txt"
    run(environment / "bin/pip", "install", "--quiet", "--constraint", constraints, wheel)
    where = run(environment / "bin/python", "-c", "import tl_steer; print(tl_steer.__file__)")
    assert where.startswith(str(environment))
    told = run(environment / "bin/tl-steer", "demo", "--out", "demo")
    report = tmp_path / "demo" / "report.html"
    assert f"The report is at {report.resolve()}" in told
    assert report.stat().st_size > 1_000_000
