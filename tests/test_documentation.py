"""Documentation: docstrings and pages are complete and match the code; links work; promises have tests."""

import ast
import builtins
import functools
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import textwrap
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import pytest
import torch

import tl_steer as ts

from .public_names import PUBLIC

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# Methods published by others: the docstring names the source.
PUBLISHED = (
    "Add", "ProjectOut", "activation_addition", "against_controls", "agreement",
    "analysis.component_factors", "analysis.confounds", "analysis.mean_traces", "audit", "choose",
    "evaluation.prediction", "evaluation.prompt_slopes", "lda_direction", "logit_lens", "mean_difference",
    "principal_component", "signal_detection", "steerability", "texts.text_damage",
)  # fmt: skip
ERRORS = {name for name in (*dir(builtins), *ts.errors.__all__) if name.endswith("Error")}


def site_module(name):
    """A module of the documentation's build."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


docstrings, site_pages = site_module("docstrings"), site_module("site_pages")


@functools.cache
def page(name):
    return (DOCS / "pages" / f"{name}.md").read_text(encoding="utf-8")


@functools.cache
def functions_in(file):
    text = (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8")
    return set(re.findall(r"^def (\w+)", text, re.MULTILINE))


@functools.cache
def parsed(thing):
    return ast.parse(textwrap.dedent(inspect.getsource(thing)))


class Documented:
    """A public name with its signature, docstring and the errors that its source raises."""

    def __init__(self, name, thing):
        self.name, self.thing = name, inspect.unwrap(thing)
        self.text = inspect.getdoc(self.thing) or ""
        self.summary = self.text.split("\n")[0]
        self.is_class = inspect.isclass(self.thing)

    @cached_property
    def parameters(self):
        if self.is_class and issubclass(self.thing, Exception):
            return []
        names = inspect.signature(self.thing).parameters
        return [name for name in names if name not in ("self", "cls") and not name.startswith("_")]

    @property
    def returns_a_table(self):
        hint = "" if self.is_class else str(inspect.signature(self.thing).return_annotation)
        return "DataFrame" in hint or hint.startswith("dict")

    def lines(self, *headings):
        """The lines of some sections of the docstring."""
        sections = docstrings.sections(self.text)
        return [line for heading, body in sections if heading in headings for line in body]

    def entries(self, *headings):
        """The names that some sections explain."""
        entries = docstrings.entries(self.lines(*headings))
        return {name for entry in entries for name in docstrings.names_of(entry)}

    @property
    def explained(self):
        """Parameters in Args or Attributes; of functions with one or two, also those in the text."""
        names = self.entries("Args:", "Attributes:")
        if len(self.parameters) <= 2:
            names |= set(re.findall(r"\w+", " ".join([self.summary, *re.findall(r"`([^`]+)`", self.text)])))
        return names

    @property
    def raised(self):
        """Errors raised by its body and by the private functions of its module that it calls."""
        errors, seen, waiting = set(), set(), [parsed(self.thing)]
        module = vars(inspect.getmodule(self.thing))
        while waiting:
            for node in ast.walk(waiting.pop()):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                    errors |= {ast.unparse(node.exc.func)} & ERRORS
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                    continue
                called = inspect.unwrap(module[node.func.id]) if node.func.id in module else None
                if node.func.id.startswith("_") and called not in seen and inspect.isfunction(called):
                    seen.add(called)
                    waiting.append(parsed(called))
        return errors

    @property
    def anchor(self):
        """Its id on the built reference page."""
        owner, _, member = self.name.rpartition(".")
        if self.name in PUBLIC:
            return site_pages.home(self.name)[0]
        return f"{site_pages.home(owner)[0]}.{member}"


def public():
    """Every public name, and every public method or property of a public class."""
    for name, thing in PUBLIC.items():
        yield Documented(name, thing)
        if not inspect.isclass(thing) or issubclass(thing, Exception):
            continue
        for attribute, member in inspect.getmembers_static(thing):
            member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if not attribute.startswith("_") and inspect.isfunction(inspect.unwrap(member)):
                yield Documented(f"{name}.{attribute}", member)


@pytest.fixture(scope="module")
def documented():
    return list(public())


@pytest.fixture(scope="module")
def top_level(documented):
    return [each for each in documented if each.name in PUBLIC]


# ---- docstrings


def test_every_docstring_begins_with_a_short_sentence(documented):
    assert len(documented) > 150
    assert {"SteeringVectors.scaled_to", "plots.pca", "sweep"} <= {each.name for each in documented}
    summaries = {each.name: each.summary for each in documented}
    sentence = re.compile(r"(?=.{1,114}$).*[.?]")
    assert {name: text for name, text in summaries.items() if not sentence.match(text)} == {}


def test_every_parameter_is_explained_and_no_other(documented):
    elsewhere = r"other arguments.* of `\w+`|with the same arguments"
    missing = {
        each.name: set(each.parameters) - each.explained
        for each in documented
        if not re.search(elsewhere, each.text)
    }
    with_parameters = [each for each in documented if each.parameters]
    unknown = {each.name: each.entries("Args:") - set(each.parameters) for each in with_parameters}
    assert {name: names for name, names in [*missing.items(), *unknown.items()] if names} == {}


def test_returned_tables_are_described(documented):
    elsewhere = r"\nReturns:\n|`(label|review|dilemma|question|passage)`|same table"
    tables = [each for each in documented if each.returns_a_table]
    assert len(tables) > 20
    assert [each.name for each in tables if not re.search(elsewhere, each.text)] == []


def test_raised_errors_are_documented(documented):
    elsewhere = r"errors are as for `|[Rr]aises as `|what is raised, are those of|ValueError: as (for )?`"
    functions = [each for each in documented if not each.is_class and not re.search(elsewhere, each.text)]
    assert any(each.raised for each in functions)
    # All figures raise the same error, which their package documents once.
    of_figures = inspect.getdoc(ts.plots)
    texts = {each.name: of_figures if each.name.startswith("plots.") else each.text for each in functions}
    missing = {
        each.name: {error for error in each.raised if error not in texts[each.name]} for each in functions
    }
    assert {name: errors for name, errors in missing.items() if errors} == {}


def test_published_methods_name_their_source():
    source = re.compile(r"(?=.*(Source|et al\. \d{4})).*\b(1[89]|20)\d\d\b", re.DOTALL)
    assert [name for name in PUBLISHED if not source.match(inspect.getdoc(PUBLIC[name]))] == []


def test_docstrings_are_rewritten_for_the_reference():
    text = "Args:\n    a, b: both.\n\nReturns:\n    A row, and\n    n: prompts,\n        all.\n    NaN else."
    readable = docstrings.readable(f"{text}\n")
    assert "    a: both.\n    b: both.\n" in readable
    assert "**Returns:**\n\nA row, and\n\n- **n**: prompts,\n    all.\n\nNaN else." in readable


def test_every_public_name_is_on_one_page_of_the_reference_and_resolves_to_its_definition(top_level):
    names = [name for each in site_pages.PAGES for name in site_pages.names_of(each)]
    assert sorted(names) == sorted(each.name for each in top_level)
    for each in top_level:
        defined = f"{each.thing.__module__}.{each.thing.__qualname__}"
        assert site_pages.home(each.name) == (defined, each.summary), each.name


def test_every_key_of_an_experiment_file_is_described_and_no_other():
    owners = {owner for classes in site_pages.experiment_tables().values() for owner in classes}
    assert {"Experiment", "Questions", "PromptPair", "Sweep"} <= {owner.__name__ for owner in owners}
    keys = {owner.__name__: {key: text for key, *_, text in site_pages.keys_of(owner)} for owner in owners}
    assert [(name, key) for name, texts in keys.items() for key, text in texts.items() if not text] == []
    tables = {*site_pages.experiment_tables(), *site_pages.NOT_IN_FILES}
    unknown = {
        owner.__name__: set(site_pages.descriptions(owner)) - set(keys[owner.__name__]) for owner in owners
    }
    assert {name: extra - tables for name, extra in unknown.items() if extra - tables} == {}


def test_keys_have_types_and_defaults_in_the_terms_of_toml():
    tables = site_pages.experiment_tables()
    rows = {
        row[0]: row[1:3] for owner in tables["sweep"] + tables["model"] for row in site_pages.keys_of(owner)
    }
    assert rows["multipliers"] == ("list of number", "required")
    assert rows["layers"] == ('list of (whole number or list of whole number) or `"all"`', '`"all"`')
    assert rows["template_variables"] == ("table of true or false or whole number or number or text", "")
    assert rows["operations"] == ('list of (`"add"` or `"project_out"`)', '`["add"]`')
    assert "| `device` | text |  |" in site_pages.experiment_keys()


# ---- the built site


class Site:
    """The built pages."""

    def __init__(self, folder):
        self.folder = folder
        self.pages = {path: path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.html"))}
        self.ids = {path: set(re.findall(r'\bid="?([^\s">]+)', text)) for path, text in self.pages.items()}

    def addresses(self, tags="a|link|script|img|source|iframe|object"):
        """(page, address) of every link and every loaded file."""
        pattern = re.compile(rf"<(?:{tags})\b[^>]*?\s(?:href|src|data)=[\"']?([^\s\"'>]+)")
        return [(path, address) for path, text in self.pages.items() for address in pattern.findall(text)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built once, as in `make docs`; a warning is an error."""
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", DOCS / "mkdocs.yml", "-d", folder]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "WARNING" not in result.stdout + result.stderr
    return Site(folder)


@pytest.mark.integration
def test_the_site_loads_nothing_from_a_network(site):
    assert len(site.pages) > 15
    loaded = site.addresses("link|script|img|source|iframe|object")
    assert [address for _, address in loaded if "//" in address] == []
    styles = "".join(path.read_text(encoding="utf-8") for path in site.folder.rglob("*.css"))
    assert not re.findall(r"url\([\"']?https?:|@import [\"']?https?:", styles)


@pytest.mark.integration
def test_every_link_within_the_site_leads_somewhere(site):
    broken = []
    for source, address in site.addresses():
        if re.match(r"[a-z]+:", address) or source.name == "404.html":  # its addresses are absolute
            continue
        target, _, anchor = unquote(address).partition("#")
        path = (source.parent / target).resolve() if target else source
        path = path / "index.html" if path.is_dir() else path
        if not path.exists() or (anchor and anchor not in site.ids.get(path, {anchor})):
            broken.append((source.name, address))
    assert broken == []


def test_every_image_says_in_words_what_it_shows():
    patterns = ("*.md", "docs/**/*.md", "tests/**/*.md", "notebooks/*.ipynb")
    pages = [path for pattern in patterns for path in ROOT.glob(pattern)]
    texts = {path: path.read_text(encoding="utf-8") for path in pages}
    images = [(name, alt) for name, text in texts.items() for alt in re.findall(r"!\[([^]]*)\]\(", text)]
    images += [(name, tag) for name, text in texts.items() for tag in re.findall(r"<img[^>]*>", text)]
    assert len(images) >= 4
    assert [each for each in images if len(each[1].split()) < 8 or "<img" in each[1]] == []


@pytest.mark.integration
def test_every_public_name_has_an_anchor_in_the_built_reference(site, documented):
    ids = set().union(*site.ids.values())
    assert [each.name for each in documented if each.anchor not in ids] == []


@pytest.mark.integration
def test_pages_fit_wide_and_narrow_windows_and_use_no_network(site, browser):
    requests, too_wide = [], []
    for width in (1280, 390):
        window = browser.new_page(viewport={"width": width, "height": 900})
        window.on("request", lambda request: requests.append(request.url))
        for name in (
            "index",
            "start",
            "gallery",
            "cookbook",
            "correct",
            "experiments",
            "files",
            "reference/evaluation",
            "reference/directions",
        ):
            window.goto((site.folder / f"{name}.html").as_uri())
            if window.evaluate("document.documentElement.scrollWidth > innerWidth"):
                too_wide.append((name, width))
        window.close()
    assert requests
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert too_wide == []


# ---- written pages


def test_every_promise_has_an_existing_test():
    tables = re.findall(r"^\| promise .*\n\|.*\n((?:\|.*\n)+)", page("correct"), re.MULTILINE)
    rows = [row for table in tables for row in table.splitlines()]
    assert len(rows) > 60
    assert [row for row in rows if not site_pages.tests_named(row)] == []
    named = site_pages.tests_named(page("correct"))
    assert [(file, test) for file, test in named if test not in functions_in(file)] == []


def test_every_pitfall_is_among_the_promises():
    assert [name for name in functions_in("test_pitfalls") if name not in page("correct")] == []


def python_blocks():
    """(page, code) of every Python block on the written pages."""
    names = [path.stem for path in sorted((DOCS / "pages").glob("*.md"))]
    code = re.compile(r"```python\n(.*?)```", re.DOTALL)
    blocks = [(name, block) for name in names for block in code.findall(page(name))]
    assert len(blocks) > 5
    return blocks


def signature_mismatch(call):
    """The mismatch of a call `ts.name(…)` with the function's signature, or `None`."""
    try:
        function = functools.reduce(getattr, ast.unparse(call.func).split(".")[1:], ts)
        count = sum(not isinstance(argument, ast.Starred) for argument in call.args)
        keywords = {keyword.arg: None for keyword in call.keywords if keyword.arg}
        inspect.signature(function).bind_partial(*[None] * count, **keywords)
    except (AttributeError, TypeError) as error:
        return f"{ast.unparse(call)}: {error}"


def test_code_on_the_pages_fits_the_signatures_and_the_width():
    failures = []
    for name, code in python_blocks():
        failures += [(name, line) for line in code.splitlines() if len(line) > 92]
        nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
        calls = [node for node in nodes if re.fullmatch(r"ts(\.\w+){1,2}", ast.unparse(node.func))]
        failures += [(name, text) for text in map(signature_mismatch, calls) if text]
        failures += [(name, code)] if "ts." in code and not calls else []
    assert failures == []


@pytest.mark.integration
@pytest.mark.model
def test_the_first_page_s_code_runs(embedded, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", page("index"), re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    monkeypatch.setattr(ts, "load_model", lambda: embedded)
    names = {}
    exec(code, names)
    assert names["separation"]["paired_accuracy"].max() > 0.9
    shifts = names["effects"].query("layers == '17' and multiplier > 0 and not control")["shift"]
    assert len(shifts) == 2
    assert (shifts > 0).all()  # as on the page: both types move in the same direction
    assert "bias" in capsys.readouterr().out  # the verdict
    assert names["figure"].data


def test_the_page_of_questions_names_every_notebook():
    names = set(re.findall(r"notebooks/(\w+)\.ipynb", page("questions")))
    assert names == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}


# ---- gallery, cookbook, first steps


def test_the_gallery_has_every_figure_with_its_call_and_its_picture():
    entry = r"^### (\w+)\n\n[^\n]+\n\n!\[[^]]+\]\(figures/gallery/(\w+)\.png\)\n\n```python\n(.*?)```"
    entries = re.findall(entry, page("gallery"), re.DOTALL | re.MULTILINE)
    assert sorted(name for name, *_ in entries) == sorted({*ts.plots.__all__} - {"for_print"})
    for name, picture, code in entries:
        assert ast.unparse(ast.parse(code).body[-1].value.func) == f"ts.plots.{name}"
        assert picture == name
    pictures = {path.stem: path.read_bytes() for path in (DOCS / "pages/figures/gallery").glob("*.png")}
    assert set(pictures) == {*ts.plots.__all__} - {"for_print"} | {"report"}
    assert all(content.startswith(b"\x89PNG") for content in pictures.values())
    assert sum(len(content) for name, content in pictures.items() if name != "report") < 1_500_000


class Script(NamedTuple):
    """Names and printed lines of a script of a page, after it has run."""

    names: dict[str, Any]
    lines: list[str]


@pytest.fixture
def run_script(embedded, monkeypatch, tmp_path, capsys):
    """Run a script of a page in an empty folder: `run_script("cookbook", "Persona vectors")`."""

    def run(name, heading):
        code = re.search(
            rf"^## {re.escape(heading)}.*?```python\n(.*?)```", page(name), re.DOTALL | re.MULTILINE
        )
        names = {}
        exec(code[1], names)
        return Script(names, capsys.readouterr().out.splitlines())

    monkeypatch.setattr(ts, "load_model", lambda: embedded)
    monkeypatch.chdir(tmp_path)
    return run


@pytest.mark.integration
@pytest.mark.model
def test_the_script_of_an_own_behaviour_writes_its_report(run_script, tmp_path):
    script = run_script("cookbook", "Own behaviour from CSV")
    assert sum("bias" in line for line in script.lines) == 2
    assert "polite" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.integration
@pytest.mark.model
def test_without_the_direction_reviews_are_hardly_told_apart_and_without_a_random_one_they_are(run_script):
    means = map(ast.literal_eval, run_script("cookbook", "Removing a direction everywhere").lines)
    unsteered, without, without_random = (positive - negative for positive, negative in means)
    assert abs(without) < 0.3 * unsteered < 0.9 * without_random


@pytest.mark.integration
@pytest.mark.model
def test_the_script_of_persona_vectors_averages_over_the_tokens_of_answers(run_script):
    names, lines = run_script("cookbook", "Persona vectors")
    assert len(set(lines)) == 4
    rows = [
        answer[~answer.isnan().any(-1)].mean(0) for answer in names["answers"].positive.values[:, 15].double()
    ]
    assert torch.allclose(sum(rows) / len(rows), names["joyful"][15].double(), atol=1e-4)


@pytest.mark.integration
@pytest.mark.model
def test_both_libraries_generate_the_same_under_steering_and_prepend_bos_adds_a_token(run_script):
    own, theirs, lengths, change = run_script("cookbook", "TransformerLens functions").lines
    assert own == theirs
    assert lengths == "35 36"
    assert float(change.split()[0]) > 0


@pytest.mark.integration
@pytest.mark.model
def test_a_direction_from_a_tensor_steers(run_script):
    unsteered, added, _ = map(float, run_script("cookbook", "A direction from a tensor").lines)
    assert added > unsteered + 1


@pytest.mark.integration
@pytest.mark.model
def test_the_first_steps_generate_three_answers(run_script):
    assert len({*filter(None, run_script("start", "In a notebook").lines)}) >= 3
