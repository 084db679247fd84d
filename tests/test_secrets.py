"""What must not get out, and what must not get in: keys of judges, and code that comes with a model."""

import json
import logging
import pickle
import traceback

import pandas as pd
import pytest
import torch

import tl_steer as ts
from tl_steer.evaluation.judging.clients import judge_of

from .conftest import random_hf_model
from .public_calls import Materials

KEY = "sk-fake-0123456789abcdefABCDEF"


class RefusingClient:
    """A client whose every error quotes the key, in the message, the cause and the context."""

    api_key = KEY

    def __init__(self, status=401):
        self.status, self.messages = status, self

    def create(self, **request):
        try:
            raise ConnectionError(f"authorization: Bearer {KEY}")
        except ConnectionError as cause:
            error = RuntimeError(f"Incorrect API key provided: {KEY}")
            error.status_code = self.status
            raise error from cause


def everything_told(error, caplog, capsys):
    """All that a user, a log file or a notebook could come to show."""
    logged = [record.getMessage() + str(record.exc_info) + str(record.args) for record in caplog.records]
    chain = "".join(traceback.format_exception(error, chain=True))
    return "\n".join([str(error), repr(error), repr(error.args), chain, *logged, *capsys.readouterr()])


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_servers_error_that_quotes_the_key_is_told_without_it(
    status, tmp_path, monkeypatch, caplog, capsys
):
    monkeypatch.setenv("TL_STEER_LOG", "debug")
    ts.show_logs("debug")
    try:
        with (
            caplog.at_level(logging.DEBUG),
            pytest.raises(ts.JudgeError, match="Incorrect API key") as caught,
        ):
            ts.judge(
                Materials().texts,
                "Which?",
                client=RefusingClient(status),
                model="m",
                cache=tmp_path / "replies",
                max_retries=1,
                sleep=lambda seconds: None,
                progress=False,
            )
    finally:
        ts.show_logs("warning")
    told = everything_told(caught.value, caplog, capsys)
    assert "Incorrect API key" in told  # what was looked through is the error's own text
    assert KEY not in told
    assert [file.read_bytes() for file in tmp_path.iterdir() if KEY.encode() in file.read_bytes()] == []


class AnsweringClient(RefusingClient):
    """A client that answers, and repeats its key."""

    def create(self, **request):
        block = type("Block", (), {"type": "text", "text": "1"})
        return type("Response", (), {"content": [block()], "stop_reason": "end", "key": KEY})()


def test_a_key_is_in_no_table_cache_or_log(tmp_path, caplog, capsys):
    with caplog.at_level(logging.DEBUG):
        table = ts.judge(
            Materials().texts,
            "Which?",
            client=AnsweringClient(),
            model="m",
            cache=tmp_path / "replies",
            progress=False,
        )
    assert isinstance(table, pd.DataFrame)
    table.to_parquet(tmp_path / "table.parquet")
    assert KEY.encode() not in pickle.dumps(table)
    assert all(KEY.encode() not in file.read_bytes() for file in tmp_path.iterdir())
    assert KEY not in caplog.text + "".join(capsys.readouterr())


def test_a_judge_shows_no_key_however_it_is_printed():
    judge = judge_of(AnsweringClient(), "m", max_tokens=8, parameters=None)
    assert KEY not in repr(judge) + str(judge)
    assert judge.without_secrets(f"no, {KEY}") == "no, …"


CODE = """
from pathlib import Path
import transformers
Path({ran!r}).write_text("the code ran")

class OwnConfig(transformers.LlamaConfig):
    model_type = "own-llama"

class LlamaForCausalLM(transformers.LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def with_code(tmp_path, monkeypatch):
    """A model's folder with Python code in it, and the file that the code makes when it runs."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, ran = tmp_path / "own", tmp_path / "ran.txt"
    random_hf_model("llama").save_pretrained(folder)
    (folder / "own_code.py").write_text(CODE.format(ran=str(ran)))
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "own-llama"
    config["auto_map"] = {
        "AutoConfig": "own_code.OwnConfig",
        "AutoModelForCausalLM": "own_code.LlamaForCausalLM",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder, ran


def test_code_that_comes_with_a_model_is_not_run(with_code):
    folder, ran = with_code
    with pytest.raises(ValueError, match=r"code of its own, which was not run.*trust_remote_code=True"):
        ts.load_model(folder, device="cpu")
    assert not ran.exists()


def test_code_that_comes_with_a_model_is_run_where_the_user_says_so(with_code):
    folder, ran = with_code
    model = ts.load_model(folder, device="cpu", trust_remote_code=True)
    assert ran.read_text() == "the code ran"
    ids = torch.tensor([[1, 5, 9]])
    expected = random_hf_model("llama")(ids).logits
    torch.testing.assert_close(model(ids), expected, atol=1e-4, rtol=0)
