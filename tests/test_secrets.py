"""API keys of judges are never shown or written, and code that comes with a model is not run."""

import json
import logging
import pickle
import traceback
from types import SimpleNamespace

import pytest
import torch

import tl_steer as ts
from tl_steer.texts.judge_clients import judge_of

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


class AnsweringClient(RefusingClient):
    """A client whose response contains the key."""

    def create(self, **request):
        block = SimpleNamespace(type="text", text="1")
        return SimpleNamespace(content=[block], stop_reason="end", key=KEY)


def judged(client, folder):
    return ts.texts.judge(
        Materials().texts, "Which?", client=client, model="m", cache=folder / "replies", max_retries=1,
        sleep=lambda seconds: None, progress=False,
    )  # fmt: skip


@pytest.mark.parametrize("status", [401, 403, 500])
def test_an_error_that_quotes_the_key_is_shown_without_it(status, tmp_path, monkeypatch, caplog, capsys):
    monkeypatch.setenv("TL_STEER_LOG", "debug")
    ts.show_logs("debug")
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(ts.errors.JudgeError, match="Incorrect API key") as raised,
    ):
        judged(RefusingClient(status), tmp_path)
    error = raised.value
    logged = [record.getMessage() + str(record.exc_info) + str(record.args) for record in caplog.records]
    chain = traceback.format_exception(error, chain=True)
    shown = "\n".join([str(error), repr(error), repr(error.args), *chain, *logged, *capsys.readouterr()])
    assert "Incorrect API key" in shown
    assert KEY not in shown
    assert [file for file in tmp_path.iterdir() if KEY.encode() in file.read_bytes()] == []


def test_a_key_is_in_no_table_cache_or_log(tmp_path, caplog, capsys):
    with caplog.at_level(logging.DEBUG):
        table = judged(AnsweringClient(), tmp_path)
    table.to_parquet(tmp_path / "table.parquet")
    assert KEY.encode() not in pickle.dumps(table)
    assert len(list(tmp_path.iterdir())) > 1
    assert all(KEY.encode() not in file.read_bytes() for file in tmp_path.iterdir())
    assert KEY not in caplog.text + "".join(capsys.readouterr())


def test_a_printed_judge_shows_no_key():
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
def model_with_code(tmp_path, monkeypatch):
    """A model's folder with Python code in it, and the file that the code writes when it runs."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, ran = tmp_path / "own", tmp_path / "ran.txt"
    random_hf_model("llama").save_pretrained(folder)
    (folder / "own_code.py").write_text(CODE.format(ran=str(ran)))
    classes = {"AutoConfig": "OwnConfig", "AutoModelForCausalLM": "LlamaForCausalLM"}
    config = json.loads((folder / "config.json").read_text()) | {
        "model_type": "own-llama",
        "auto_map": {auto: f"own_code.{name}" for auto, name in classes.items()},
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder, ran


def test_code_that_comes_with_a_model_is_not_run(model_with_code):
    folder, ran = model_with_code
    with pytest.raises(ValueError, match=r"code of its own, which was not run.*trust_remote_code=True"):
        ts.load_model(folder, device="cpu")
    assert not ran.exists()


def test_code_that_comes_with_a_model_runs_with_trust_remote_code(model_with_code):
    folder, ran = model_with_code
    model = ts.load_model(folder, device="cpu", trust_remote_code=True)
    assert ran.read_text() == "the code ran"
    ids = torch.tensor([[1, 5, 9]])
    expected = random_hf_model("llama")(ids).logits
    torch.testing.assert_close(model(ids), expected, atol=1e-4, rtol=0)
