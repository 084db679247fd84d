"""Source archive and wheel are complete and work outside the checkout."""

import configparser
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


def test_every_package_is_listed_in_setup_cfg():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "tl_steer").rglob("__init__.py")}
    packages = {".".join(folder.parts) for folder in folders}
    assert set(config["options"]["packages"].split()) == packages | {"tl_steer.data"}


def test_transformer_lens_4_is_installed_with_the_same_other_requirements():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    texts = config["options"]["install_requires"], (ROOT / "requirements-tl4.txt").read_text()
    lines = [[line.strip() for line in text.splitlines()] for text in texts]
    required, others = ({line for line in each if line and line[0] != "#"} for each in lines)
    assert required ^ others == {"transformer-lens>=3.9,<4", "transformer-lens>=4.3,<5"}


@pytest.fixture(scope="module")
def distribution(tmp_path_factory):
    """Source archive and wheel of `python -m build`, from a copy: it leaves folders in the source."""
    source, output = tmp_path_factory.mktemp("source") / "tree", tmp_path_factory.mktemp("built")
    ignored = shutil.ignore_patterns(".*", "build", "runs", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    command = [sys.executable, "-m", "build", "--outdir", str(output), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    (archive,), (wheel,) = output.glob("*.tar.gz"), output.glob("*.whl")
    return archive, wheel


@pytest.fixture(scope="module")
def wheel(distribution):
    return distribution[1]


@pytest.mark.integration
def test_wheel_and_source_archive_contain_every_module_and_all_data(distribution, wheel):
    suffixes = ("py", "toml", "csv", "jinja", "json")
    patterns = [f"tl_steer/**/*.{suffix}" for suffix in suffixes]
    files = {file.relative_to(ROOT).as_posix() for pattern in patterns for file in ROOT.glob(pattern)}
    patterns = ["data/*.csv", "data/*.json", "data/organisms/organism-*/*"]
    data = [file for pattern in patterns for file in ROOT.glob(pattern)]
    files |= {f"tl_steer/{file.relative_to(ROOT).as_posix()}" for file in data}
    assert len(files) > 60
    installed = set(zipfile.ZipFile(wheel).namelist())
    assert files <= installed
    assert not any("training" in Path(name).parts for name in installed)
    with tarfile.open(distribution[0]) as archive:
        archived = {name.partition("/")[2] for name in archive.getnames()}
    own = {name for name in installed if ".dist-info/" not in name}
    assert {name.replace("tl_steer/data/", "data/") for name in own} <= archived


@pytest.mark.integration
def test_data_is_read_from_a_wheel_outside_the_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); import tl_steer as ts; "
        f"assert ts.__file__.startswith({str(tmp_path)!r}), ts.__file__; "
        "assert len(ts.prompts.read_reviews()) == 120; "
        "assert ts.load_model('organism-bias', device='cpu').cfg.n_layers == 3; "
        "from tl_steer.experiments import read_experiment; read_experiment('demo')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


@pytest.mark.integration
@pytest.mark.slow
def test_a_wheel_in_an_empty_environment_runs_the_demo(wheel, tmp_path):
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=True)
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*command):
        result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-4000:]
        return result.stdout

    constraints = ROOT / "constraints.txt"
    run(environment / "bin/pip", "install", "--quiet", "--constraint", constraints, wheel)
    location = run(environment / "bin/python", "-c", "import tl_steer; print(tl_steer.__file__)")
    assert location.startswith(str(environment))
    output = run(environment / "bin/tl-steer", "demo", "--out", "demo")
    report = tmp_path / "demo" / "report.html"
    assert f"The report is at {report.resolve()}" in output
    assert report.stat().st_size > 1_000_000
