"""An experiment as one value, read from a TOML file; errors name the file, the table and the key."""

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import Field, ValidationError

from .._util.file_io import read_text
from .._util.validation import checked, short_repr
from ..models import ORGANISMS
from .config import (
    ActivationAddition,
    Capture,
    Count,
    CsvPairs,
    HonestyPairs,
    LogisticDirection,
    MeanOrLda,
    Model,
    OrganismPairs,
    PrincipalComponent,
    PromptPair,
    Separation,
    table,
)
from .config_sweep import Damage, Questions, Sweep, Text

NOT_IN_FILES = ("source", "folder")
# What pydantic's error types expect, in the terms of TOML.
EXPECTED = {
    "string_type": "text", "bool_type": "true or false", "int_type": "a whole number",
    "int_parsing": "a whole number", "float_type": "a finite number", "finite_number": "a finite number",
    "tuple_type": "a list", "mapping_type": "a table", "dict_type": "a table", "literal_error": "{expected}",
    "greater_than_equal": "{ge} or more", "less_than": "a number below {lt}",
    "too_short": "at least {min_length}", "string_pattern_mismatch": "some text",
}  # fmt: skip
TYPES = {name for name in EXPECTED if name.endswith("_type")} | {"literal_error"}


@table
class Experiment:
    """An experiment file; from `read_experiment`.

    Attributes:
        title: the heading of the report.
        question: what the experiment is to show, in your words, for the report.
        pairs, capture, directions: how the vectors are made; by default a mean difference, or for
            kind = "prompts" an activation addition.
        questions, sweep: the choice sweep, both or neither.
        damage: neutral text read at the sweep's chosen layer; not for kind = "prompts".
        text: open prompts, or `None`.
        seed: of every random choice.
        source: the file's text.
        folder: where the file is; relative data paths start there.
    """

    title: str
    pairs: Annotated[CsvPairs | HonestyPairs | OrganismPairs | PromptPair, Field(discriminator="kind")]
    question: str = ""
    seed: Count = 0
    model: Model = Field(default_factory=Model)
    capture: Capture = Field(default_factory=Capture)
    directions: Annotated[
        MeanOrLda | PrincipalComponent | LogisticDirection | ActivationAddition | None,
        Field(discriminator="method"),
    ] = None
    questions: Questions | None = None
    sweep: Sweep | None = None
    damage: Damage = Field(default_factory=Damage)
    text: Text | None = None
    separation: Separation = Field(default_factory=Separation)
    source: str = Field(default="", repr=False)
    folder: Path = Field(default_factory=Path)

    __repr__ = short_repr

    def __post_init__(self) -> None:
        if self.directions is None:
            method = "activation_addition" if self.has_prompts else "mean_difference"
            directions = (ActivationAddition if self.has_prompts else MeanOrLda)(method=method)
            object.__setattr__(self, "directions", directions)
        for problem in _contradictions(self):
            raise ValueError(problem)

    @property
    def has_prompts(self) -> bool:
        """Whether the vectors come from one or two prompts: one vector per position, and no pairs."""
        return self.pairs.kind == "prompts"

    @property
    def has_chat(self) -> bool:
        """Whether prompts are written in the model's chat format."""
        questions, tables = self.questions, (self.pairs, self.questions, self.text)
        return (
            self.pairs.kind == "honesty"
            or (questions is not None and questions.kind in ("claims", "misconceptions"))
            or any(getattr(table, "chat", False) for table in tables)
        )


def _contradictions(experiment: Experiment) -> Iterator[str]:
    """Error messages for tables that do not fit each other; the first one is raised."""
    pairs, questions, sweep = experiment.pairs, experiment.questions, experiment.sweep
    method, text, model = experiment.directions.method, experiment.text, experiment.model.name
    if (questions is None) != (sweep is None):
        yield "[questions] and [sweep] belong together: give both, or neither."
    if questions is None and text is not None and not isinstance(text.layers, tuple):
        yield "[text] layers must be a list, since without [questions] no layer is chosen."
    if experiment.has_prompts != (method == "activation_addition"):
        both = '[pairs] kind = "prompts" and [directions] method = "activation_addition"'
        yield f"{both} go together: give both, or neither."
    for name, each in (("pairs", pairs), ("questions", questions)):
        if each is not None and each.kind == "organism" and model not in ORGANISMS:
            yield (
                f'[{name}] kind = "organism" is in the language of the model organisms, which [model] name = '
                f"{model!r} does not know: use one of {', '.join(ORGANISMS)}."
            )
    if questions is not None and questions.training and pairs.kind != "honesty":
        yield f'[questions] training = true needs [pairs] kind = "honesty", not "{pairs.kind}".'
    if sweep is not None and sweep.shuffled and method == "principal_component":
        yield "[sweep] shuffled: swapped pairs have the same principal component. Use other controls."
    if not experiment.has_prompts:
        return
    reason = 'with [pairs] kind = "prompts" there are no pairs, and one vector for each of the first tokens'
    if experiment.capture != Capture() or experiment.separation != Separation():
        yield f"[capture] and [separation] are about pairs: {reason}. Leave them out."
    if experiment.damage != Damage():
        yield f"[damage] adds one vector to every token: {reason}. Leave it out."
    if sweep is not None and sweep.shuffled + sweep.orthogonal:
        yield f"[sweep] shuffled and orthogonal controls are made of pairs: {reason}. Use controls instead."
    for name, each in (("sweep", sweep), ("text", text)):
        if each is not None and "project_out" in each.operations:
            yield f'[{name}] operations: {reason}, which cannot be projected out. Use "add".'
    if sweep is None and text is None:
        yield '[pairs] kind = "prompts" needs [text], or [questions] and [sweep].'


@checked
def read_experiment(path: str | Path) -> Experiment:
    """Read and validate an experiment file.

    Args:
        path: a TOML file, or the name of a bundled experiment ("demo", "honesty_llama2", …).

    Raises:
        FileNotFoundError: neither a file nor a name.
        ValueError: not TOML, or an unknown, missing or wrong key; the message names file, table and key.
    """
    if str(path) in own_experiments():
        file, folder = resources.files("tl_steer.experiments") / f"{path}.toml", Path.cwd()
    else:
        file = Path(path)
        folder = file.resolve().parent
        if not file.is_file():
            inside, names = file / "experiment.toml", ", ".join(own_experiments())
            advice = f"did you mean {inside}?" if inside.is_file() else f"expected one of these ({names})."
            raise FileNotFoundError(f"{path} is neither a file nor one of our experiments: {advice}")
    try:
        source = read_text(file)
        values = tomllib.loads(source)
    except RecursionError as error:
        raise ValueError(f"{file.name} is nested too deeply for a TOML file of experiments.") from error
    except ValueError as error:  # not UTF-8, not TOML, or a number of thousands of digits
        raise ValueError(f"{file.name} is not a TOML file in UTF-8: {error}") from error
    try:
        return _validated(values, source, folder)
    except ValueError as error:
        raise ValueError(f"{file.name}: {error}") from error


def require_as_read(experiment: Experiment) -> None:
    """Raise ValueError if an experiment differs from its `source`, from which the report is made."""
    differing = ["title"]
    if experiment.source:  # missing in an experiment built in Python
        original = _validated(tomllib.loads(experiment.source), experiment.source, experiment.folder)
        names = [each.name for each in fields(Experiment)]
        differing = [name for name in names if getattr(original, name) != getattr(experiment, name)]
    if differing:
        raise ValueError(
            f"the experiment differs from its file in {', '.join(differing)}: a run saves the file's text. "
            "Write the change into a file, and read that with read_experiment."
        )


def own_experiments() -> list[str]:
    """Names of the bundled experiments."""
    files = resources.files("tl_steer.experiments").iterdir()
    return sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))


def _validated(values: Mapping[str, Any], source: str, folder: Path) -> Experiment:
    if reserved := [key for key in NOT_IN_FILES if key in values]:
        raise ValueError(_unknown_key(reserved, values))
    try:
        return Experiment(**values, source=source, folder=folder)
    except ValidationError as error:
        raise ValueError(_message(error.errors(include_url=False), values)) from error


def _message(errors: list[Any], values: Mapping[str, Any]) -> str:
    """One message for pydantic's errors: an unknown key first (others may follow from it), else the first."""
    first = min(errors, key=lambda each: each["type"] != "unexpected_keyword_argument")
    path, value = _resolved(first["loc"], values)
    where, name = _named(path)
    match first["type"]:
        case "unexpected_keyword_argument":
            return _unknown_key(path, values)
        case "missing":
            return f"{where}the key {first['loc'][-1]!r} is missing."
        case "dataclass_type" | "model_attributes_type":
            return f"{path[0]} = {value!r:.60}: expected a table, [{path[0]}]."
        case "union_tag_not_found" | "union_tag_invalid":
            return _wrong_tag(path[0], first["ctx"]["discriminator"].strip("'"), value)
        case "value_error":
            # The error of a whole table names its key already.
            what = f"{name} = {value!r:.60}: " if name else ""
            return f"{where}{what}{str(first['ctx']['error']).removesuffix('.')}."
    return _wrong_value(errors, values, path[:2])


def _resolved(loc: tuple[str | int, ...], values: Any) -> tuple[list[str | int], Any]:
    """The keys and indices in an error's location, without its names of union members, and the value."""
    path: list[str | int] = []
    for step in loc:
        is_key = isinstance(values, dict) and step in values
        if is_key or (isinstance(values, list) and isinstance(step, int)):
            path.append(step)
            values = values[step]
    return path, values


def _named(path: list[str | int]) -> tuple[str, str]:
    """ "[sweep] " and "layers[0]", as a message has them; either may be empty."""
    where = f"[{path[0]}] " if path and _table_classes(path[0]) else ""
    name, *others = (path[1:] if where else path) or [""]
    return where, name + "".join(f"[{each!r}]" for each in others)


def _table_classes(name: str) -> list[type]:
    """The dataclasses that a table may become; empty for a plain key."""
    annotation = getattr(Experiment.__pydantic_fields__.get(name), "annotation", None)
    return [each for each in get_args(annotation) or (annotation,) if is_dataclass(each)]


def _tags(owner: type, key: str) -> tuple[str, ...]:
    return get_args(owner.__pydantic_fields__[key].annotation)


def _unknown_key(path: list[str | int], values: Mapping[str, Any]) -> str:
    where, owner = "the file", Experiment
    if len(path) > 1:
        where, tag = f"[{path[0]}]", Experiment.__pydantic_fields__[path[0]].discriminator
        classes = _table_classes(path[0])
        owner = next(each for each in classes if tag is None or values[path[0]][tag] in _tags(each, tag))
    known = [each.name for each in fields(owner) if each.name not in NOT_IN_FILES]
    near = difflib.get_close_matches(path[-1], known, n=1)
    advice = f"did you mean {near[0]!r}?" if near else f"it may have {', '.join(known)}."
    return f"{where} has no key {path[-1]!r}; {advice}"


def _wrong_tag(name: str, key: str, values: Mapping[str, Any]) -> str:
    tags = [tag for each in _table_classes(name) for tag in _tags(each, key)]
    expected = " or ".join(map(repr, tags))
    if key not in values:
        return f"[{name}] the key {key!r} is missing: expected {expected}."
    return f"[{name}] {key} = {values[key]!r:.60}: expected {expected}.{_near(values[key], expected)}"


def _wrong_value(errors: list[Any], values: Mapping[str, Any], key: list[str | int]) -> str:
    """What the types of a key expect, of the errors that are deepest in it: there is one per union member."""
    located = [(*_resolved(each["loc"], values), each) for each in errors]
    path, value, _ = max((each for each in located if each[0][:2] == key), key=lambda each: len(each[0]))
    same = [error for steps, _, error in located if steps == path]
    constraints = [each for each in same if each["type"] not in TYPES] or same
    texts = (EXPECTED.get(each["type"], each["msg"]).format(**each.get("ctx", {})) for each in constraints)
    expected, (where, name) = " or ".join(dict.fromkeys(texts)), _named(path)
    if same[0]["loc"][-1] == "[key]":
        return f"{where}{name}: expected {expected} as key.{_near(path[-1], expected)}"
    return f"{where}{name} = {value!r:.60}: expected {expected}.{_near(value, expected)}"


def _near(value: Any, expected: str) -> str:
    near = difflib.get_close_matches(str(value), re.findall("'(.*?)'", expected), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""
