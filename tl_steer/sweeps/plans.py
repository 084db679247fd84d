"""All that a sweep's numbers depend on, as plain values that can be kept and told apart in words."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from .._generation import stop_tokens
from .._scoring import plan_choices
from ..directions import SteeringVectors
from ..models import Prompt, identify, tokenize_all
from ..models.weights import weight_digests
from ..prompts import ChoiceQuestions
from .conditions import Cell
from .content_hash import counted, digest

FORMAT = 5
Plan = Mapping[str, Any]  # plain JSON
# Names of settings that change no number, or that are told by themselves.
NOT_RUN_BY = (
    "model_name",
    "tokenizer",
    "device",
    "n_devices",
    "dtype",
    "seed",
    "init",
    "checkpoint",
    "default_prepend_bos",
    "n_params",
)
ABSENT = "nothing"
WHOLE = "cells"  # what the parts before it come to


def sweep_plan(
    model: Any,
    vectors: Mapping[str, SteeringVectors],
    controls: int | Mapping[str, SteeringVectors],
    cells: Sequence[Cell],
    questions: ChoiceQuestions | list[str],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """What a sweep's numbers depend on, part by part; large things by their digest.

    Args:
        vectors, controls, questions: as `sweep` has them.
        cells: all of them, in order; whatever a callable made is in their operations.
        settings: the arguments that are plain values; "measure" is among them.

    Raises:
        ValueError: an operation holds something of which nothing can be told but where in memory it lies.
    """
    steered = [cell for cell in cells if cell.operations]
    made = {name: _vectors(each) for name, each in controls.items()} if isinstance(controls, Mapping) else {}
    return {
        "format": FORMAT,
        "model": model_parts(model),
        "vectors": {name: _vectors(each) for name, each in vectors.items()},
        "controls": made or len({cell.vector for cell in cells if cell.control}),
        "questions": questions_parts(questions),
        "tokens": _tokens(model, questions, settings["measure"]),
        "stop tokens": stop_tokens(model) if settings["measure"] == "generate" else None,
        "operations": list(dict.fromkeys(cell.operation for cell in steered)),
        "layers": list(dict.fromkeys("+".join(map(str, cell.layers)) for cell in steered)),
        "multipliers": list(dict.fromkeys(str(cell.multiplier) for cell in steered)),
        **{name: _plain(value) for name, value in settings.items()},
        WHOLE: counted([_made(cell) for cell in cells]),
    }


def model_parts(model: Any) -> dict[str, Any]:
    """Which model, by every bit of its weights, run by what, on what kind of device; its name may change."""
    identity = asdict(identify(model))
    compared = {name: value for name, value in identity.items() if name not in ("name", "revision")}
    return {
        "weights": digest(weight_digests(model)),  # the fingerprint alone would not see every fine-tuning
        **compared,
        "fingerprint": digest(identity["fingerprint"]),
        "dtype": str(model.cfg.dtype),
        "device": torch.device(model.cfg.device).type,
        "backend": type(model).__name__,
        "settings": _settings(model.cfg),
    }


def _settings(cfg: Any) -> dict[str, str]:
    """What a model's configuration says of how it is run; not where it came from, or where it is."""
    held = {name: value for name, value in vars(cfg).items() if not name.startswith(NOT_RUN_BY)}
    return {name: f"{value}" for name, value in held.items() if isinstance(value, int | float | str | list)}


def questions_parts(questions: ChoiceQuestions | Sequence[str]) -> dict[str, str]:
    """Prompts, choices, answers and factors: how many, and their digest."""
    if not isinstance(questions, ChoiceQuestions):
        return {"prompts": counted(questions)}
    held = {name: getattr(questions, name) for name in ("prompts", "choices", "answers")}
    if questions.factors is not None:
        held["factors"] = questions.factors
    return {name: counted(values) for name, values in held.items() if values is not None}


def tokens_part(model: Any, prompts: Sequence[Prompt]) -> str:
    """How many prompts, and the digest of their token ids: a vocabulary does not say how text is cut."""
    return counted(tokenize_all(model, prompts))


def _tokens(model: Any, questions: ChoiceQuestions | Sequence[str], measure: str) -> str:
    """The token ids of the prompts, and where choices are scored of all that is read of them."""
    if not isinstance(questions, ChoiceQuestions):
        return tokens_part(model, questions)
    if measure != "choice":
        return tokens_part(model, questions.prompts)
    plan = plan_choices(model, questions.prompts, questions.choices)
    return f"{len(plan.prompts)} ({digest(plan)})"


def differences(begun: Plan, now: Plan) -> str:
    """Where two plans differ, in words: "multipliers: [1.0] against [1.0, 2.0]"; "" where they do not."""
    told = list(_differing(begun, now, ""))
    named = [each for each in told if not each.startswith(f"{WHOLE}: ")]
    return "; ".join(named or told)


def _differing(begun: Any, now: Any, name: str) -> Iterator[str]:
    if isinstance(begun, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*begun, *now]):
            yield from _differing(begun.get(key, ABSENT), now.get(key, ABSENT), f"{name} {key}".strip())
    elif begun != now:
        yield f"{name}: {_shown(begun)} against {_shown(now)}"


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    return ", ".join(value) if isinstance(value, Mapping) else str(value)


def _vectors(vectors: SteeringVectors) -> str:
    return f"{len(vectors)} layers at {vectors.hook} ({digest(vectors)})"


def _made(cell: Cell) -> list[Any]:
    labels = [cell.vector, cell.control, cell.control_of, cell.operation, cell.layers, cell.multiplier]
    return [*labels, cell.operations]


def _plain(value: Any) -> Any:
    """A setting as JSON can hold it: numpy's numbers are plain ones."""
    return value.item() if isinstance(value, np.generic) else value
