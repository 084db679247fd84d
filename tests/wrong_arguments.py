"""What people give by mistake or out of habit, without the run-time checks that only tests have.

`python -m tests.wrong_arguments` prints, as JSON, what each wrong argument raises: its kind and its words.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import tl_steer as ts

from .public_calls import MODEL, N_LAYERS, Materials


def wrong_calls(folder):
    """Calls by what is written, each with words that its refusal must have."""
    made = Materials()
    m, v, pairs, acts, questions = MODEL, made.vectors, made.pairs, made.activations, made.questions
    numbers = np.ones(v.values.shape[-1])
    one = v[1]
    (folder / "array.pt").write_bytes(b"")
    torch.save(np.ones((2, 3)), folder / "array.pt")

    def sweep(**changes):
        return lambda: ts.sweep(
            m, **{"vectors": v, "questions": questions, "multipliers": [1.0], "progress": False, **changes}
        )

    def vector(**changes):
        fields = {"values": one.values, "layer": 1, "hook": "resid_post", "method": "x", "stream_norm": 1.0}
        return lambda: ts.SteeringVector(**{**fields, "identity": one.identity, **changes})

    def vectors(**changes):
        fields = {name: getattr(v, name) for name in ("values", "hook", "method", "stream_norm", "identity")}
        return lambda: ts.SteeringVectors(**{**fields, "layers": v.layers, **changes})

    return {
        "without_factors(names=[None])": (
            lambda: ts.without_factors(v, {"a": v}, names=[None]),
            "str, Sequence[str] or None; got [None]",
        ),
        "sweep(multipliers=.1)": (sweep(multipliers=0.1), "in a list: [0.1]"),
        "sweep(multipliers=['1'])": (sweep(multipliers=["1"]), "got ['1']"),
        "sweep(operations='add')": (sweep(operations="add"), "in a list: ['add']"),
        "sweep(layers='15')": (sweep(layers="15"), "got '15'"),
        "sweep(layers=[1.0])": (sweep(layers=[1.0]), "got [1.0]"),
        "sweep(controls=v)": (sweep(controls=v), "got a SteeringVectors"),
        "sweep(controls=None)": (sweep(controls=None), "got None"),
        "sweep(controls=1.5)": (sweep(controls=1.5), "got 1.5"),
        "sweep(out='.')": (sweep(out="."), "Parquet"),
        "sweep(out='x.csv')": (sweep(out=folder / "x.csv"), "Parquet"),
        "sweep(memory='2GB')": (sweep(memory="2GB"), "got '2GB'"),
        "sweep(questions=list of numbers)": (sweep(questions=[1, 2], measure="generate"), "got [1, 2]"),
        "sweep(questions='text')": (sweep(questions="text", measure="generate"), "in a list"),
        "sweep(layers twice)": (sweep(layers=[(0, 1), (1, 0)]), "asked for twice"),
        "sweep('name')": (
            lambda: ts.sweep("gpt2", v, questions, multipliers=[1]),
            "HookedTransformer or TransformerBridge; got 'gpt2'",
        ),
        "capture('gpt2', …)": (
            lambda: ts.capture("gpt2", "a"),
            "HookedTransformer or TransformerBridge; got 'gpt2'",
        ),
        "capture(positions=-1)": (lambda: ts.capture(m, "a", positions=-1), "Positions or None; got -1"),
        "capture(positions='last')": (lambda: ts.capture(m, "a", positions="last"), "got 'last'"),
        "capture(positions=[0, 1])": (lambda: ts.capture(m, "a", positions=[0, 1]), "got [0, 1]"),
        "capture(positions=last_token)": (
            lambda: ts.capture(m, "a", positions=ts.last_token),
            "mean to call it, last_token(…)?",
        ),
        "capture(layers='5')": (lambda: ts.capture(m, "a", layers="5"), "got '5'"),
        "capture(layers=['5'])": (lambda: ts.capture(m, "a", layers=["5"]), "got ['5']"),
        "capture(layers=3.0)": (lambda: ts.capture(m, "a", layers=3.0), "got 3.0"),
        "capture(['a', None])": (lambda: ts.capture(m, ["a", None]), "where item 1 is None"),
        "capture([1.5])": (lambda: ts.capture(m, [1.5]), "got [1.5]"),
        "capture(b'a')": (lambda: ts.capture(m, b"a"), "got b'a'"),
        "capture(layer=1)": (lambda: ts.capture(m, "a", layer=1), "capture() got an unexpected keyword"),
        "capture()": (lambda: ts.capture(m), "missing 1 required positional argument: 'prompts'"),
        "v[[0, 1]]": (lambda: v[[0, 1]], "int; got [0, 1]"),
        "v['1']": (lambda: v["1"], "int; got '1'"),
        "v[0:2]": (lambda: v[0:2], "int; got a slice"),
        "v * '2'": (lambda: v * "2", "scaled by a number"),
        "v.cosine_similarity(1)": (lambda: v.cosine_similarity(1), "cannot combine"),
        "v.weighted([1.0])": (lambda: v.weighted([1.0]), "got [1.0]"),
        "v + one": (lambda: v + one, "cannot combine"),
        "generate([Add(v)])": (lambda: ts.generate(m, "a", [ts.Add(v)]), "out of its list"),
        "generate(v[1])": (lambda: ts.generate(m, "a", one), "edits of a model; got a SteeringVector"),
        "generate(max_new_tokens=1.5)": (lambda: ts.generate(m, "a", max_new_tokens=1.5), "int; got 1.5"),
        "generate(temperature='hot')": (lambda: ts.generate(m, "a", temperature="hot"), "float; got 'hot'"),
        "Add(v, '2')": (lambda: ts.Add(v, "2"), "float; got '2'"),
        "Add(tensor)": (lambda: ts.Add(one.values), "got a Tensor of shape"),
        "Add(positions=0)": (lambda: ts.Add(v, positions=0), "Positions; got 0"),
        "Ablate(to=vector)": (lambda: ts.Ablate(1, to=one), "got a SteeringVector"),
        "Ablate(to=array)": (lambda: ts.Ablate(1, to=numbers), "got a ndarray of shape"),
        "Ablate(heads=0)": (lambda: ts.Ablate(1, "z", heads=0), "in a list: [0]"),
        "SteeringVector(array)": (vector(values=numbers), "got a ndarray of shape"),
        "SteeringVector(layer=-1)": (vector(layer=-1), "0 to"),
        "SteeringVector(layer=99)": (vector(layer=99), "layer 99 is out of range"),
        "SteeringVectors(layers=(0, 0, …))": (vectors(layers=(0,) * N_LAYERS), "twice"),
        "SteeringVectors(layers=(-1, …))": (vectors(layers=(0, 1, 2, -1)), "0 to"),
        "steer(v)": (lambda: ts.steer(m, v), "edits of a model; got a SteeringVectors"),
        "choice_logits(three)": (lambda: ts.choice_logits(m, "a", ("a", "b", "c")), "got ('a', 'b', 'c')"),
        "choice_logits('AB')": (lambda: ts.choice_logits(m, "a", "AB"), "got 'AB'"),
        "ChoiceQuestions(answers=[None, 0])": (
            lambda: ts.ChoiceQuestions(["a", "b"], [("A", "B")] * 2, answers=[None, 0]),
            "where item 0 is None",
        ),
        "ChoiceQuestions('a')": (lambda: ts.ChoiceQuestions("a", [("A", "B")]), "in a list: ['a']"),
        "render([…])": (lambda: ts.chat_format(m).render([{"role": "user"}]), "str; got [{'role': 'user'}]"),
        "load_model(processing='…')": (
            lambda: ts.load_model(processing="center_writing_weights"),
            "got 'center_writing_weights'",
        ),
        "load_model(backend='x')": (lambda: ts.load_model(backend="x"), "'hooked'"),
        "load_model(device='gpu')": (lambda: ts.load_model(device="gpu"), "device='gpu'"),
        "load_model(device='cuda:7')": (lambda: ts.load_model(device="cuda:7"), "device='cuda:7'"),
        "load_model(None)": (lambda: ts.load_model(None), "got None"),
        "logit_lens(multipliers=3.)": (lambda: ts.logit_lens(m, v, multipliers=3.0), "in a list: [3.0]"),
        "activation_addition([…], […])": (
            lambda: ts.activation_addition(m, ["a"], ["b"]),
            "out of its list",
        ),
        "read_pairs(table)": (lambda: ts.read_pairs(pd.DataFrame({"a": [1]})), "got a DataFrame"),
        "contrast_pairs(factors={…})": (
            lambda: ts.contrast_pairs(["a"], ["b"], factors={"kind": [1]}),
            "DataFrame or None; got {'kind': [1]}",
        ),
        "contrast_pairs('a', 'b')": (lambda: ts.contrast_pairs("a", "b"), "in a list: ['a']"),
        "contrast_pairs([…, None])": (lambda: ts.contrast_pairs(["a", None], ["b", "c"]), "item 1 is None"),
        "capture_pairs(list)": (lambda: ts.capture_pairs(m, [("a", "b")]), "ContrastPairs; got"),
        "mean_difference(pairs)": (
            lambda: ts.mean_difference(pairs),
            "PairedActivations; got a ContrastPairs",
        ),
        "mean_difference(None)": (lambda: ts.mean_difference(None), "PairedActivations; got None"),
        "separation(estimator='mean')": (lambda: ts.separation(acts, estimator="mean"), "got 'mean'"),
        "effectiveness(list)": (lambda: ts.effectiveness([1]), "DataFrame; got [1]"),
        "plots.signal_detection(None)": (lambda: ts.plots.signal_detection(None), "DataFrame; got None"),
        "load_pt(array)": (lambda: ts.load_pt(folder / "array.pt", m), "plain tensors"),
        "SteeringVectors.load(3)": (lambda: ts.SteeringVectors.load(3), "got 3"),
        "v.save(None)": (lambda: v.save(None), "got None"),
    }


def raised(call):
    """The kind and the words of what a call raises, and the file of the line that raises it."""
    try:
        call()
    except Exception as error:
        trace = error.__traceback__
        while trace.tb_next:
            trace = trace.tb_next
        return type(error).__name__, str(error), trace.tb_frame.f_code.co_filename
    return "", "nothing was raised", ""


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        calls = wrong_calls(Path(folder))
        print(json.dumps({name: raised(call) for name, (call, _) in calls.items()}))
