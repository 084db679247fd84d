"""A valid call of every public function, on tiny things; texts and names carry a mark where one is given."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

import tl_steer as ts

from .tiny_model import D_MODEL, made_vector, make_model, word_tokenizer

N_LAYERS = 4  # `prediction` ranks layers, and wants as many
MODEL = make_model(word_tokenizer(), n_layers=N_LAYERS)


class Call(NamedTuple):
    """A function and its arguments by name; of `positional`, the values that come without one."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    positional: tuple[str, ...] = ()

    def __call__(self, **changes: Any) -> Any:
        given = self.arguments | changes
        first = [given.pop(name) for name in self.positional]
        return self.function(*first, **given)


class Materials:
    """What the calls are made with, computed once; `mark` is part of every text and name."""

    def __init__(self, mark: str = "") -> None:
        self.mark = mark
        kinds = [f"x{mark}", f"y{mark}"]
        self.claims = pd.DataFrame(
            {"statement": [f"{each} is{mark}" for each in "abcdefgh"], "label": [1, 0] * 4}
        )
        self.questions = ts.ChoiceQuestions(
            [f"{each} is{mark}" for each in "abcdefgh"],
            [("True", "False")] * 8,
            answers=[0, 1] * 4,
            factors=pd.DataFrame({"kind": kinds * 4}),
        )
        self.pairs = ts.contrast_pairs(
            [f"{each}{mark} good" for each in "abcdefgh"],
            [f"{each}{mark} bad" for each in "abcdefgh"],
            factors=pd.DataFrame({"topic": kinds * 4}),
        )
        rng = np.random.default_rng(0)
        values = rng.standard_normal((2, 8, N_LAYERS, D_MODEL)) + np.array([1.0, -1.0])[:, None, None, None]
        captured = ts.capture_pairs(MODEL, self.pairs)
        sides = (
            _replaced(side, values=torch.tensor(each, dtype=torch.float32)[:, :, None])
            for side, each in zip((captured.positive, captured.negative), values, strict=True)
        )
        self.activations = ts.PairedActivations(*sides, captured.factors)
        self.vectors = ts.mean_difference(self.activations)

    @functools.cached_property
    def sweep(self) -> pd.DataFrame:
        return ts.sweep(
            MODEL,
            {f"v{self.mark}": self.vectors},
            self.questions,
            layers=[0, 1, 2, 3],
            multipliers=[-2.0, -1.0, 1.0, 2.0],
            controls=2,
            progress=False,
        )

    @functools.cached_property
    def texts(self) -> pd.DataFrame:
        table = ts.sweep(
            MODEL,
            {f"v{self.mark}": self.vectors},
            list(self.questions.prompts),
            layers=[0, 1],
            multipliers=[-2.0, 2.0],
            controls=1,
            measure="generate",
            max_new_tokens=3,
            progress=False,
        )
        return table.assign(text=[f"{text} {row}{self.mark}" for row, text in enumerate(table["text"])])

    @functools.cached_property
    def judged(self) -> pd.DataFrame:
        return ts.judge(
            self.texts, "Which?", client=lambda prompt: "1" if len(prompt) % 3 else "2", progress=False
        )

    @functools.cached_property
    def damaged(self) -> pd.DataFrame:
        return ts.damage(
            MODEL,
            {f"v{self.mark}": self.vectors},
            ["a b c", "d e f g"],
            layers=[0, 1, 2],
            multipliers=[-2.0, -1.0, 1.0, 2.0],
            controls=2,
            progress=False,
        )

    @functools.cached_property
    def scored(self) -> pd.DataFrame:
        return ts.embedding_scores(self.texts, {"positive": ["good"], "negative": ["bad"]}, embedder=embedded)


def embedded(texts: list[str]) -> np.ndarray:
    """A stand-in for an embedding model: counts of letters."""
    rows = np.array([[1.0, len(text), text.count("a"), text.count("e")] for text in texts])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _replaced(activations: ts.Activations, **changes: Any) -> ts.Activations:
    from dataclasses import replace

    return replace(activations, **changes)


def public_calls(made: Materials, folder: Path) -> dict[str, Call]:
    """Every public function but those that need another model, a server or the network, by name."""
    chat = ts.ChatFormat("plain", MODEL.tokenizer)
    vectors, activations = made.vectors, made.activations
    prompts = [f"a b{made.mark}", f"c{made.mark}"]
    add = ts.Add(made_vector(MODEL, 1), 1.0)
    misconceptions = pd.DataFrame({"question": ["a", "b"], "correct": ["c", "d"], "incorrect": ["e", "f"]})
    reviews = made.claims.rename(columns={"statement": "review"})
    traced = ts.traces(
        ts.capture(MODEL, prompts, positions=ts.all_tokens()), vectors, tokenizer=MODEL.tokenizer
    )
    estimators = {"mean": ts.mean_difference, "pca": ts.principal_component}

    def steered(model, operation, prompt_lengths, force):
        with ts.steer(model, operation, prompt_lengths=prompt_lengths, force=force):
            return model(torch.tensor([[0, 3, 4]]))

    def one(function, /, **arguments):
        return Call(function, arguments)

    def run(function, /, **arguments):
        return Call(function, {"model": MODEL, **arguments})

    def ran(function, /, *names, **arguments):  # operations stand between the arguments without a name
        order = ("model", *names, "operation")
        return Call(function, {"model": MODEL, "operation": add, **arguments}, order)

    return {
        "Ablate": one(ts.Ablate, layer=1, hook="z", heads=[0], to="zero", positions=ts.last_token()),
        "Add": one(ts.Add, vector=vectors, multiplier=1.0, positions=ts.token(0)),
        "ProjectOut": one(ts.ProjectOut, vector=vectors, strength=1.0, positions=ts.token(0)),
        "SetProjection": one(ts.SetProjection, vector=vectors, value=1.0, positions=ts.token(0)),
        "ChatFormat": one(
            lambda kind, user, system, answer_prefix: ts.ChatFormat(kind, MODEL.tokenizer).render(
                user, system=system, answer_prefix=answer_prefix
            ),
            kind="llama-2",
            user="a",
            system="b",
            answer_prefix="c",
        ),
        "ChoiceQuestions": one(
            ts.ChoiceQuestions,
            prompts=prompts,
            choices=[("a", "b"), ("c", "d")],
            answers=[0, 1],
            factors=pd.DataFrame({"kind": ["x", "y"]}),
        ),
        "SteeringVector": Call(
            lambda it, layers, hook: it.at(layers=layers, hook=hook),
            {"it": vectors[1], "layers": [0, 2], "hook": "resid_post"},
        ),
        "SteeringVectors": Call(
            lambda it, weights, dose, factor: (it.weighted(weights) * factor).scaled_to(dose=dose),
            {"it": vectors, "weights": {0: 1.0, 2: -0.5}, "dose": 0.5, "factor": 2.0},
        ),
        "activation_addition": run(
            ts.activation_addition, positive="a b", negative="c d", layers=[0, 1], hook="resid_pre"
        ),
        "after": one(lambda text: ts.preview(MODEL, "a b c", ts.after(text)), text="b"),
        "against_controls": one(ts.against_controls, table=made.sweep, by=["kind"], value="shift"),
        "agreement": one(
            ts.agreement,
            pairs_activations=activations,
            estimators=estimators,
            splits=2,
            resamples=2,
            shuffles=2,
            slow_draws=1,
            seed=0,
        ),
        "audit": one(ts.audit, pairs=made.pairs, tokenizer=MODEL.tokenizer),
        "capture": ran(
            ts.capture,
            "prompts",
            prompts=prompts,
            positions=ts.last_token(),
            layers=[0, 1],
            hook="resid_post",
            max_new_tokens=1,
            allow_empty=False,
            force=False,
            reuse=True,
            memory=None,
        ),
        "capture_pairs": ran(
            ts.capture_pairs,
            "pairs",
            pairs=made.pairs,
            positions=ts.last_token(),
            layers=[0, 1],
            hook="resid_post",
            max_new_tokens=1,
            memory=None,
        ),
        "chat_format": run(ts.chat_format),
        "choice_logits": ran(
            ts.choice_logits,
            "prompts",
            "choices",
            prompts=prompts,
            choices=[("a", "b"), ("c", "d")],
            mass=True,
            memory=None,
        ),
        "choose": one(
            ts.choose,
            table=made.sweep,
            on="choose",
            report="report",
            score="accuracy",
            resamples=5,
            seed=0,
            splits=3,
        ),
        "claim_questions": one(ts.claim_questions, claims=made.claims, chat=chat, free_text=False),
        "component_factors": one(
            ts.component_factors, table=ts.pca(activations, components=2), factors=["topic"]
        ),
        "confounds": one(ts.confounds, vectors=vectors, pairs_activations=activations, shuffles=3, seed=0),
        "contrast_pairs": one(
            ts.contrast_pairs,
            positive=["a", "b"],
            negative=["c", "d"],
            factors=pd.DataFrame({"topic": ["x", "y"]}),
        ),
        "control_vectors": one(
            ts.control_vectors,
            pairs_activations=activations,
            vectors=vectors,
            random=1,
            shuffled=1,
            orthogonal=1,
            seed=0,
        ),
        "damage": run(
            ts.damage,
            vectors=vectors,
            passages=["a b c", "d e"],
            layers=[0, (0, 2)],
            multipliers=[1.0],
            operations=["add"],
            positions=ts.all_tokens(),
            controls=1,
            seed=0,
            max_tokens=4,
            progress=False,
        ),
        "effect_and_damage": one(
            ts.effect_and_damage,
            effects=ts.effectiveness(made.sweep),
            damage_table=made.damaged,
            effect="shift",
            cost="kl",
            max_loss_change=0.1,
            min_distinct=0.5,
        ),
        "effectiveness": one(ts.effectiveness, table=made.sweep, by=["kind"], overall=False),
        "embedding_effect": one(ts.embedding_effect, table=made.scored, by=[]),
        "embedding_scores": one(
            ts.embedding_scores,
            table=made.texts,
            exemplars={"positive": ["good"], "negative": ["bad"]},
            embedder=embedded,
            batch_size=4,
        ),
        "exemplar_accuracy": one(
            ts.exemplar_accuracy,
            exemplars={"positive": ["good", "ga"], "negative": ["bad", "be"]},
            embedder=embedded,
        ),
        "factor_directions": one(ts.factor_directions, pairs_activations=activations),
        "generate": ran(
            ts.generate,
            "prompts",
            prompts=prompts,
            max_new_tokens=2,
            min_new_tokens=0,
            temperature=0.5,
            top_p=0.9,
            seed=0,
            use_cache=True,
            return_tokens=False,
            memory=None,
        ),
        "honesty_pairs": one(
            ts.honesty_pairs, claims=made.claims, chat=chat, style="letters", shared="letter", persona=True
        ),
        "identify": run(ts.identify),
        "judge": one(
            ts.judge,
            table=made.texts,
            question="Which?",
            client=lambda prompt: "1",
            model="m",
            against="opposite",
            cache=str(folder / "replies"),
            max_tokens=8,
            limit=2,
            max_calls=100,
            max_retries=1,
            seed=0,
            sleep=lambda seconds: None,
            progress=False,
        ),
        "judge_cost": one(
            ts.judge_cost,
            table=made.texts,
            question="Which?",
            client=lambda prompt: "1",
            model="m",
            against="unsteered",
            cache=False,
            max_tokens=8,
            limit=2,
            price=(1.0, 2),
            seed=0,
        ),
        "lda_direction": one(ts.lda_direction, pairs=activations),
        "logistic_direction": one(ts.logistic_direction, pairs=activations, C=1.0),
        "logit_lens": run(
            ts.logit_lens, source=vectors, multipliers=[1.0, -1.0], top=3, layers=[0, 1], norm=True
        ),
        "mean_damage": one(ts.mean_damage, table=made.damaged, by=[]),
        "mean_difference": one(ts.mean_difference, pairs=activations),
        "mean_projections": one(ts.mean_projections, table=ts.projections(activations, vectors), by="side"),
        "mean_traces": one(ts.mean_traces, table=traced, by="prompt_id", difference=None, pair=None),
        "method_agreement": one(ts.method_agreement, pairs_activations=activations, estimators=estimators),
        "misconception_questions": one(
            ts.misconception_questions, questions=misconceptions, chat=chat, free_text=True
        ),
        "organism_pairs": one(
            ts.organism_pairs,
            name="organism-bias",
            limit=3,
            confound="truth",
            strength=0.5,
            mislabelled=0.1,
            seed=0,
        ),
        "organism_passages": one(ts.organism_passages, count=2, seed=0),
        "organism_questions": one(ts.organism_questions, split="test", persona="anyone", seed=0),
        "parse_positions": one(ts.parse_positions, text="token(0) | generated_tokens()"),
        "pca": one(ts.pca, pairs_activations=activations, components=2, layers=[0, 1]),
        "prediction": one(
            ts.prediction,
            cards=ts.agreement(activations, splits=2, resamples=2, shuffles=2),
            effects=ts.effectiveness(made.sweep),
            effect="shift",
        ),
        "preference": one(ts.preference, table=made.judged, by=[]),
        "preview": run(ts.preview, prompt="a b c", positions=ts.span(0, 2)),
        "principal_component": one(
            ts.principal_component, pairs=activations, component={1: 1.0, 2: 0.5}, of="pooled"
        ),
        "projections": one(ts.projections, pairs_activations=activations, vectors=vectors, centred=True),
        "prompt_slopes": one(ts.prompt_slopes, table=made.sweep, toward="signal"),
        "random_direction": one(ts.random_direction, pairs=activations, seed=0),
        "read_choice": one(ts.read_choice, text="(A) True", choices=("True", "False"), rule="careful"),
        "sampled_choices": one(ts.sampled_choices, table=made.sweep, seed=0),
        "sentiment_questions": one(ts.sentiment_questions, reviews=reviews, examples=[("a", "positive")]),
        "save_gguf": one(
            ts.save_gguf,
            vectors=vectors.weighted({1: 1.0, 2: 1.0}),
            path=folder / "vectors.gguf",
            model_hint="llama",
            force=False,
        ),
        "save_pt": one(ts.save_pt, vectors=vectors, path=folder / "vectors.pt", force=False),
        "separation": one(ts.separation, pairs_activations=activations, folds=2, shuffles=2, seed=0),
        "side_by_side": one(
            ts.side_by_side,
            table=made.texts,
            layers=[0],
            multipliers=[2.0],
            operation="add",
            vector=None,
            controls=False,
        ),
        "signal_detection": one(ts.signal_detection, table=made.sweep, by=["kind"], resamples=5, seed=0),
        "span": one(lambda start, stop: ts.preview(MODEL, "a b c", ts.span(start, stop)), start=0, stop=2),
        "steer": Call(steered, {"model": MODEL, "operation": add, "prompt_lengths": [3], "force": False}),
        "steerability": one(
            ts.steerability, table=made.sweep, by=["kind"], toward="signal", resamples=5, seed=0
        ),
        "sweep": run(
            ts.sweep,
            vectors=vectors,
            questions=made.questions,
            layers=[0, (0, 2)],
            multipliers=[-1.0, 1.0],
            operations=["add", "project_out"],
            positions=ts.all_tokens(),
            measure="choice",
            max_new_tokens=2,
            controls=1,
            seed=0,
            out=folder / "table.parquet",
            progress=False,
            memory=None,
        ),
        "text_damage": one(ts.text_damage, table=made.texts, model=MODEL, progress=False, memory=None),
        "token": one(lambda i: ts.preview(MODEL, "a b c", ts.token(i)), i=1),
        "tokenize": run(ts.tokenize, text="a b", bos=None),
        "tokens_matching": one(lambda text: ts.preview(MODEL, "a b c", ts.tokens_matching(text)), text="b"),
        "to_steering_vectors": one(ts.to_steering_vectors, vectors=vectors, force=False),
        "trace_difference": one(ts.trace_difference, first=traced, second=traced),
        "traces": one(
            ts.traces,
            activations=activations.positive,
            vectors=vectors,
            factors=activations.factors,
            tokenizer=MODEL.tokenizer,
            window=None,
        ),
        "usable_range": one(
            ts.usable_range, joined=ts.effect_and_damage(ts.effectiveness(made.sweep), made.damaged)
        ),
        "vector_components": one(ts.vector_components, vectors=vectors),
        "vectors_from_pairs": run(
            ts.vectors_from_pairs,
            pairs=made.pairs,
            positions=ts.last_token(),
            layers=[0],
            hook="resid_post",
            memory=None,
        ),
        "without_factors": one(ts.without_factors, vectors=vectors, factors=activations, names=["topic"]),
    }


def figure_calls(made: Materials) -> dict[str, Call]:
    """Every figure, of a table made with the materials."""
    plots, activations, vectors = ts.plots, made.activations, made.vectors
    joined = ts.effect_and_damage(ts.effectiveness(made.sweep), made.damaged)
    read = ts.capture(MODEL, list(made.pairs.positive[:2]), positions=ts.all_tokens())
    options = {name: {"facet": "kind"} for name in ("effectiveness", "steerability")}
    options["traces"] = {"facet": "prompt_id"}
    tables = {
        "agreement": ts.agreement(activations, splits=2, resamples=2, shuffles=2),
        "choices": ts.choose(made.sweep, on="choose", report="report", resamples=5, splits=3),
        "component_factors": ts.component_factors(ts.pca(activations)),
        "confounds": ts.confounds(vectors, activations, shuffles=3),
        "damage": ts.mean_damage(made.damaged),
        "dose_response": ts.effectiveness(made.sweep),
        "effect_and_damage": joined,
        "effectiveness": ts.effectiveness(made.sweep, by=["kind"]),
        "embedding_scores": ts.embedding_effect(made.scored),
        "judgements": ts.preference(made.judged),
        "logit_lens": ts.logit_lens(MODEL, vectors, top=3),
        "mean_projections": ts.mean_projections(ts.projections(activations, vectors)),
        "pca": ts.pca(activations),
        "projections": ts.projections(activations, vectors),
        "separation": ts.separation(activations, folds=2, shuffles=2),
        "signal_detection": ts.signal_detection(made.sweep, resamples=5),
        "slopes": ts.prompt_slopes(made.sweep),
        "steerability": ts.steerability(made.sweep, by=["kind"], resamples=5),
        "texts": ts.side_by_side(made.texts),
        "traces": ts.traces(read, vectors, tokenizer=MODEL.tokenizer),
        "vector_components": ts.vector_components(vectors),
    }
    return {
        name: Call(getattr(plots, name), {"table": table, **options.get(name, {})}, ("table",))
        for name, table in tables.items()
    }
