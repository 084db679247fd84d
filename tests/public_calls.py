"""A valid call of every public function, on tiny inputs; `mark` is inserted into every text and name."""

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

import tl_steer as ts
from tl_steer import analysis, directions, evaluation, exchange, texts

from .public_names import PUBLIC
from .tiny_model import D_MODEL, made_vector, make_model, word_tokenizer

N_LAYERS = 4  # the minimum that `prediction` can rank
MODEL = make_model(word_tokenizer(), n_layers=N_LAYERS)
MULTIPLIERS = [-2.0, -1.0, 1.0, 2.0]
EXEMPLARS = {"positive": ["good"], "negative": ["bad"]}
# Types, errors, packages, readers (tests/test_bad_files.py), and functions that need another model or Ray.
WITHOUT_CALL = {
    "Activations", "ContrastPairs", "JudgeCost", "ModelIdentity", "PairedActivations", "Positions",
    "all_tokens", "compare_estimators", "current_token", "from_repeng", "from_steering_vectors",
    "generated_tokens", "get_model", "last_token", "load_gguf", "load_model", "load_pt", "planted_direction",
    "plots", "prompt_tokens", "ray_executor", "read_claims", "read_dilemmas", "read_misconceptions",
    "read_neutral", "read_pairs", "read_prompts", "read_questions", "read_recorded", "read_reviews",
    "show_logs", "to_repeng", "verify", "against_baselines", "exemplar_cost", "write_exemplars",
    "restore_layout", *ts.errors.__all__,
}  # fmt: skip
PUBLIC_CALLS = {name if name.startswith("plots.") else name.rpartition(".")[2] for name in PUBLIC}
NAMES = sorted(PUBLIC_CALLS - WITHOUT_CALL - {"plots.compare_estimators", "plots.for_print"})


class Call(NamedTuple):
    """A function and its arguments by name; those in `positional` are passed by position."""

    function: Callable[..., Any]
    arguments: dict[str, Any]
    positional: tuple[str, ...] = ()

    def __call__(self, **changes: Any) -> Any:
        arguments = self.arguments | changes
        first = [arguments.pop(name) for name in self.positional]
        return self.function(*first, **arguments)


class Materials:
    """Inputs of the calls, each computed once."""

    def __init__(self, mark: str = "") -> None:
        self.mark = mark
        levels = [f"x{mark}", f"y{mark}"]
        texts = [f"{letter} is{mark}" for letter in "abcdefgh"]
        self.claims = pd.DataFrame({"statement": texts, "label": [1, 0] * 4})
        kinds, topics = (pd.DataFrame({name: levels * 4}) for name in ("kind", "topic"))
        choices = [("True", "False")] * 8
        self.questions = ts.ChoiceQuestions(texts, choices, answers=[0, 1] * 4, factors=kinds)
        positive, negative = ([f"{x}{mark} {word}" for x in "abcdefgh"] for word in ("good", "bad"))
        self.pairs = ts.contrast_pairs(positive, negative, factors=topics)
        values = np.random.default_rng(0).standard_normal((2, 8, N_LAYERS, D_MODEL))
        values += np.array([1.0, -1.0])[:, None, None, None]
        captured = ts.capture_pairs(MODEL, self.pairs)
        sides = (
            replace(side, values=torch.tensor(array, dtype=torch.float32)[:, :, None])
            for side, array in zip((captured.positive, captured.negative), values, strict=True)
        )
        self.activations = ts.PairedActivations(*sides, captured.factors)
        self.vectors = ts.mean_difference(self.activations)

    @property
    def named_vectors(self) -> dict[str, ts.SteeringVectors]:
        return {f"v{self.mark}": self.vectors}

    @cached_property
    def texts(self) -> pd.DataFrame:
        table = ts.sweep(
            MODEL, self.named_vectors, list(self.questions.prompts), layers=[0, 1], multipliers=[-2.0, 2.0],
            controls=1, control_layers="all", measure="generate", max_new_tokens=3, progress=False,
        )  # fmt: skip
        return table.assign(text=[f"{text} {row}{self.mark}" for row, text in enumerate(table["text"])])

    # fmt: off
    sweep = cached_property(lambda self: ts.sweep(MODEL, self.named_vectors, self.questions,
        layers=[0, 1, 2, 3], multipliers=MULTIPLIERS, controls=2, control_layers="all", progress=False))
    damaged = cached_property(lambda self: ts.damage(MODEL, self.named_vectors, ["a b c", "d e f g"],
        layers=[0, 1, 2], multipliers=MULTIPLIERS, controls=2, progress=False))
    # fmt: on
    judged = cached_property(lambda self: ts.texts.judge(self.texts, "Which?", client=client, progress=False))
    scored = cached_property(lambda self: texts.embedding_scores(self.texts, EXEMPLARS, embedder=embedded))
    agreement = cached_property(
        lambda self: ts.agreement(self.activations, splits=2, resamples=2, shuffles=2)
    )
    effects = cached_property(lambda self: ts.effectiveness(self.sweep))
    joined = cached_property(lambda self: evaluation.effect_and_damage(self.effects, self.damaged))
    pca = cached_property(lambda self: ts.pca(self.activations))
    projections = cached_property(lambda self: ts.projections(self.activations, self.vectors))


def client(prompt: str) -> str:
    """A fake judge."""
    return "12"[len(prompt) % 3 == 0]


def embedded(texts: list[str]) -> np.ndarray:
    """A fake embedding model: counts of letters."""
    rows = np.array([[1.0, len(text), text.count("a"), text.count("e")] for text in texts])
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def public_calls(m: Materials, folder: Path) -> dict[str, Call]:
    """A call of each function in `PUBLIC` except `WITHOUT_CALL`; files are written to `folder`."""
    chat = ts.models.ChatFormat("plain", MODEL.tokenizer)
    vectors, activations = m.vectors, m.activations
    prompts, choices = [f"a b{m.mark}", f"c{m.mark}"], [("a", "b"), ("c", "d")]
    add = ts.Add(made_vector(MODEL, 1), 1.0)
    last, every, first = ts.last_token(), ts.all_tokens(), ts.token(0)
    misconceptions = pd.DataFrame({"question": ["a", "b"], "correct": ["c", "d"], "incorrect": ["e", "f"]})
    reviews = m.claims.rename(columns={"statement": "review"})
    traced = ts.traces(ts.capture(MODEL, prompts, positions=every), vectors, tokenizer=MODEL.tokenizer)
    estimators = {"mean": ts.mean_difference, "pca": ts.principal_component}
    exemplars = {"positive": ["good", "ga"], "negative": ["bad", "be"]}

    def steered(model, operation, prompt_lengths, force):
        with ts.steer(model, operation, prompt_lengths=prompt_lengths, force=force):
            return model(torch.tensor([[0, 3, 4]]))

    def scaled(it, weights, dose, factor):
        return (it.weighted(weights) * factor).scaled_to(dose=dose)

    def chat_prompt(kind, **arguments):
        return ts.models.ChatFormat(kind, MODEL.tokenizer).render(**arguments)

    def previewed(positions, /, **arguments):
        return Call(lambda **values: ts.preview(MODEL, "a b c", positions(**values)), arguments)

    def call(function, /, **arguments):
        return Call(function, arguments)

    def run(function, /, **arguments):
        return Call(function, {"model": MODEL, **arguments})

    def edited(function, /, *names, **arguments):  # operations are passed by position
        return Call(function, {"model": MODEL, "operation": add, **arguments}, ("model", *names, "operation"))

    # fmt: off
    return {
        "Ablate": call(ts.Ablate, layer=1, hook="z", heads=[0], to="zero", positions=last),
        "Add": call(ts.Add, vector=vectors, multiplier=0.5, positions=first),
        "ProjectOut": call(ts.ProjectOut, vector=vectors, strength=1.0, positions=first),
        "SetProjection": call(ts.SetProjection, vector=vectors, value=1.0, positions=first),
        "ChatFormat": call(chat_prompt, kind="llama-2", user="a", system="b", answer_prefix="c"),
        "ChoiceQuestions": call(ts.ChoiceQuestions, prompts=prompts, choices=choices, answers=[0, 1],
            factors=pd.DataFrame({"kind": ["x", "y"]})),
        "SteeringVector": call(ts.SteeringVector.at, self=vectors[1], layers=[0, 2], hook="resid_post"),
        "SteeringVectors": call(scaled, it=vectors, weights={0: 1.0, 2: -0.5}, dose=0.5, factor=2.0),
        "steering_vector": run(ts.steering_vector, tensor=vectors.values[0], layer=1, hook="resid_pre",
            name="x", stream_norm=2.0),
        "activation_addition": run(ts.activation_addition, positive="a b", negative="c d", layers=[0, 1],
            hook="resid_pre"),
        "after": previewed(ts.after, text="b"),
        "against_controls": call(ts.against_controls, table=m.sweep, by=["kind"], value="shift"),
        "agreement": call(ts.agreement, activations=activations, estimators=estimators, splits=2, resamples=2,
            shuffles=2, slow_resamples=1, seed=0),
        "audit": call(ts.audit, pairs=m.pairs, tokenizer=MODEL.tokenizer),
        "capture": edited(ts.capture, "prompts", prompts=prompts, positions=last, layers=[0, 1],
            hook="resid_post", max_new_tokens=1, allow_empty=False, force=False, reuse=True, memory=None),
        "capture_pairs": edited(ts.capture_pairs, "pairs", pairs=m.pairs, positions=last, layers=[0, 1],
            hook="resid_post", max_new_tokens=1, memory=None),
        "chat_format": run(ts.chat_format),
        "choice_logits": edited(ts.choice_logits, "prompts", "choices", prompts=prompts, choices=choices,
            mass=True, memory=None),
        "choose": call(ts.choose, table=m.sweep, on="choose", report="report", value="accuracy", resamples=5,
            seed=0, splits=3),
        "claim_questions": call(ts.claim_questions, claims=m.claims, chat=chat, free_text=False,
            wording="study"),
        "component_factors": call(analysis.component_factors, table=ts.pca(activations, components=2),
            factors=["topic"]),
        "confounds": call(analysis.confounds, vectors=vectors, activations=activations, shuffles=3, seed=0),
        "contrast_pairs": call(ts.contrast_pairs, positive=["a", "b"], negative=["c", "d"],
            factors=pd.DataFrame({"topic": ["x", "y"]})),
        "control_vectors": call(ts.control_vectors, activations=activations, vectors=vectors, random=1,
            shuffled=1, orthogonal=1, seed=0),
        "damage": run(ts.damage, vectors=vectors, passages=["a b c", "d e"], layers=[0, (0, 2)],
            multipliers=[1.0], operations=["add"], positions=every, controls=1, seed=0, max_tokens=4,
            progress=False),
        "effect_and_damage": call(evaluation.effect_and_damage, effects=m.effects, damage_table=m.damaged,
            value="shift", cost="kl", max_loss_change=0.1, min_distinct=0.5),
        "effectiveness": call(ts.effectiveness, table=m.sweep, by=["kind"], overall=False),
        "embedding_effect": call(evaluation.embedding_effect, table=m.scored, by=[]),
        "embedding_scores": call(texts.embedding_scores, table=m.texts, exemplars=EXEMPLARS,
            embedder=embedded, batch_size=4),
        "exemplar_accuracy": call(texts.exemplar_accuracy, exemplars=exemplars, embedder=embedded),
        "factor_directions": call(directions.factor_directions, activations=activations),
        "generate": edited(ts.generate, "prompts", prompts=prompts, max_new_tokens=2, min_new_tokens=0,
            temperature=0.5, top_p=0.9, repetition_penalty=1.1, seed=0, use_cache=True, return_tokens=False,
            memory=None),
        "honesty_pairs": call(ts.honesty_pairs, claims=m.claims, chat=chat, style="letters", shared="letter",
            persona=True, wording="study"),
        "identify": run(ts.identify), "explain": run(ts.explain),
        "judge": call(texts.judge, table=m.texts, question="Which?", client=client, model="m",
            against="opposite", cache=str(folder / "replies"), max_tokens=8, limit=2, max_calls=100,
            max_retries=1, seed=0, sleep=lambda seconds: None, progress=False),
        "judge_cost": call(texts.judge_cost, table=m.texts, question="Which?", client=client,
            model="m", against="unsteered", cache=False, max_tokens=8, limit=2, price=(1.0, 2), seed=0),
        "lda_direction": call(ts.lda_direction, activations=activations),
        "logistic_direction": call(ts.logistic_direction, activations=activations, C=1.0),
        "logit_lens": run(ts.logit_lens, source=vectors, multipliers=[1.0, -1.0], top=3, layers=[0, 1],
            norm=True),
        "mean_damage": call(evaluation.mean_damage, table=m.damaged, by=[]),
        "mean_difference": call(ts.mean_difference, activations=activations),
        "mean_projections": call(analysis.mean_projections, table=m.projections, by="side"),
        "mean_traces": call(analysis.mean_traces, table=traced, by="prompt_id", difference=None, pair=None),
        "method_agreement": call(analysis.method_agreement, activations=activations, estimators=estimators),
        "misconception_questions": call(ts.prompts.misconception_questions, questions=misconceptions,
            chat=chat, free_text=True, wording="study"),
        "organism_pairs": call(ts.organisms.organism_pairs, name="organism-bias", limit=3, confound="truth",
            strength=0.5, mislabelled=0.1, seed=0),
        "organism_passages": call(ts.organisms.organism_passages, count=2, seed=0),
        "organism_questions": call(ts.organisms.organism_questions, split="test", persona="anyone", seed=0),
        "parse_positions": call(ts.positions.parse_positions, text="token(0) | generated_tokens()"),
        "pca": call(ts.pca, activations=activations, components=2, layers=[0, 1], of="centred_differences"),
        "prediction": call(evaluation.prediction, per_layer=m.agreement, effects=m.effects, value="shift"),
        "preference": call(texts.preference, table=m.judged, by=[]),
        "preview": run(ts.preview, prompt="a b c", positions=ts.span(0, 2)),
        "principal_component": call(ts.principal_component, activations=activations, component={1: 1.0,
            2: 0.5}, of="pooled", sign="vote"),
        "projections": call(ts.projections, activations=activations, vectors=vectors, centred=True),
        "prompt_slopes": call(evaluation.prompt_slopes, table=m.sweep, toward="signal"),
        "random_direction": call(ts.random_direction, activations=activations, seed=0),
        "read_choice": call(ts.read_choice, text="(A) True", choices=("True", "False"), rule="careful"),
        "sampled_choices": call(evaluation.sampled_choices, table=m.sweep, seed=0),
        "sentiment_questions": call(ts.prompts.sentiment_questions, reviews=reviews, examples=[("a",
            "positive")]),
        "save_gguf": call(exchange.save_gguf, vectors=vectors.weighted({1: 1.0, 2: 1.0}),
            path=folder / "vectors.gguf", model_hint="llama", force=False),
        "save_pt": call(exchange.save_pt, vectors=vectors, path=folder / "vectors.pt", force=False),
        "separation": call(ts.separation, activations=activations, folds=2, shuffles=2, seed=0),
        "side_by_side": call(texts.side_by_side, table=m.texts, layers=[0], multipliers=[2.0],
            operation="add", vector=None, controls=False),
        "signal_detection": call(ts.signal_detection, table=m.sweep, by=["kind"], resamples=5, seed=0),
        "span": previewed(ts.span, start=0, stop=2),
        "steer": call(steered, model=MODEL, operation=add, prompt_lengths=[3], force=False),
        "steerability": call(ts.steerability, table=m.sweep, by=["kind"], toward="signal", resamples=5,
            seed=0),
        "sweep": run(ts.sweep, vectors=vectors, questions=m.questions, layers=[0, (0, 2)], multipliers=[-1.0,
            1.0], operations=["add", "project_out"], positions=every, measure="choice", max_new_tokens=2,
            temperature=0.0, top_p=1.0, repetition_penalty=1.0, draws=1, controls=1, control_layers="chosen",
            divide_by_layers=False, seed=0, out=folder / "table.parquet", progress=False, memory=None),
        "text_damage": call(texts.text_damage, table=m.texts, model=MODEL, progress=False, memory=None),
        "token": previewed(ts.token, i=1),
        "tokenize": run(ts.tokenize, text="a b", bos=None),
        "report": call(ts.report, table=m.sweep, activations=None, vectors=None, damage=None, texts=None,
            title="a", question="b", by="kind", signal="x", noun="prompts", score="shift", seed=0),
        "tokens_matching": previewed(ts.tokens_matching, text="b"),
        "to_steering_vectors": call(exchange.to_steering_vectors, vectors=vectors, force=False),
        "trace_difference": call(analysis.trace_difference, first=traced, second=traced),
        "traces": call(ts.traces, activations=activations.positive, vectors=vectors,
            factors=activations.factors, tokenizer=MODEL.tokenizer, window=None),
        "usable_range": call(evaluation.usable_range, table=m.joined),
        "vector_components": call(analysis.vector_components, vectors=vectors),
        "vectors_from_pairs": run(ts.vectors_from_pairs, pairs=m.pairs, positions=last, layers=[0],
            hook="resid_post", memory=None),
        "without_factors": call(directions.without_factors, vectors=vectors, factors=activations,
            names=["topic"]),
    }
    # fmt: on


def figure_calls(m: Materials) -> dict[str, Call]:
    """A call of each figure in `FIGURES`."""
    activations, vectors = m.activations, m.vectors
    captured = ts.capture(MODEL, list(m.pairs.positive[:2]), positions=ts.all_tokens())
    traced = ts.traces(captured, vectors, tokenizer=MODEL.tokenizer)
    steered = m.sweep[~m.sweep["control"]]
    baseline = m.sweep[m.sweep["vector"] == "none"].assign(draw=0, recording=f"r{m.mark}")
    tables = {
        "agreement": m.agreement, "dose_response": m.effects, "effect_and_damage": m.joined,
        "effect_map": m.effects, "pca": m.pca, "projections": m.projections,
        "against_baselines": evaluation.against_baselines(steered, baseline, resamples=5),
        "against_controls": ts.against_controls(m.sweep, by=["kind"]),
        "choose": ts.choose(m.sweep, on="choose", report="report", resamples=5, splits=3),
        "component_factors": analysis.component_factors(m.pca),
        "confounds": analysis.confounds(vectors, activations, shuffles=3),
        "damage": evaluation.mean_damage(m.damaged),
        "effectiveness": ts.effectiveness(m.sweep, by=["kind"]),
        "embedding_scores": evaluation.embedding_effect(m.scored),
        "preference": texts.preference(m.judged),
        "logit_lens": ts.logit_lens(MODEL, vectors, top=3),
        "mean_projections": analysis.mean_projections(m.projections),
        "separation": ts.separation(activations, folds=2, shuffles=2),
        "signal_detection": ts.signal_detection(m.sweep, resamples=5),
        "prompt_slopes": evaluation.prompt_slopes(m.sweep),
        "steerability": ts.steerability(m.sweep, by=["kind"], resamples=5),
        "side_by_side": texts.side_by_side(m.texts),
        "tokens": traced.assign(token=traced["token"] + m.mark, run=f"r{m.mark}"),
        "traces": traced,
        "vector_components": analysis.vector_components(vectors),
    }  # fmt: skip
    arguments = {name: {"table": table} for name, table in tables.items()}
    facets = dict.fromkeys(("against_controls", "effectiveness", "steerability"), "kind")
    facets |= {"tokens": "run", "traces": "prompt_id"}
    for name, facet in facets.items():
        arguments[name]["facet"] = facet
    arguments["tokens"]["layer"] = 2
    return {name: Call(getattr(ts.plots, name), each, ("table",)) for name, each in arguments.items()}
