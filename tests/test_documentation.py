"""The pages and the reference: whole, offline, true to the code, and every promise with a test behind it."""

import ast
import builtins
import importlib.util
import inspect
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

import pytest

import tl_steer as ts
from tl_steer import plots

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = tomllib.loads((DOCS / "reference.toml").read_text(encoding="utf-8"))["page"]
WRITTEN = sorted((DOCS / "pages").glob("*.md"))
NAMED_TEST = re.compile(r"`(test_\w+)\.py::(test_\w+)`")
# Methods that somebody else published: the docstring says who.
BORROWED = (
    "Add", "ProjectOut", "activation_addition", "against_controls", "agreement", "audit", "choose",
    "component_factors", "confounds", "lda_direction", "logit_lens", "mean_difference", "mean_traces",
    "prediction", "principal_component", "prompt_slopes", "signal_detection", "steerability",
    "text_damage",
)  # fmt: skip

ERRORS = {name for name in dir(builtins) if name.endswith("Error")} | {
    name for name in ts.__all__ if name.endswith("Error")
}


def loaded(name):
    """One of the site's own modules."""
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


docstrings, site_pages = loaded("docstrings"), loaded("site_pages")


def written(name):
    """The text of a written page."""
    return (DOCS / "pages" / f"{name}.md").read_text(encoding="utf-8")


class Described:
    """A public thing as its reader meets it: signature, docstring, what its source raises."""

    def __init__(self, name, thing):
        self.name, self.thing = name, inspect.unwrap(thing)
        self.text = inspect.getdoc(self.thing) or ""

    def __repr__(self):
        return self.name

    @cached_property
    def parameters(self):
        """Those that a caller may give."""
        if inspect.isclass(self.thing) and issubclass(self.thing, Exception):
            return []
        given = inspect.signature(self.thing).parameters
        return [name for name in given if name not in ("self", "cls") and not name.startswith("_")]

    @property
    def returns_a_table(self):
        told = "" if inspect.isclass(self.thing) else str(inspect.signature(self.thing).return_annotation)
        return "DataFrame" in told or told.startswith("dict")

    def below(self, *headings):
        """The lines of some sections."""
        return [
            line for heading, body in docstrings.sections(self.text) if heading in headings for line in body
        ]

    @property
    def explained(self):
        """Names that Args or Attributes are about, and of a few words those in code."""
        entries = docstrings.entries(self.below("Args:", "Attributes:"))
        named = {name for entry in entries for name in docstrings.names_of(entry)}
        few = (
            set()
            if len(self.parameters) > 2
            else {*re.findall(r"\w+", self.text.split("\n")[0]), *self._code}
        )
        return named | few

    @property
    def _code(self):
        return {word for part in re.findall(r"`([^`]+)`", self.text) for word in re.findall(r"\w+", part)}

    @property
    def refers(self):
        """Whether it says that the other arguments are another function's."""
        return re.search(r"other arguments.* of `\w+`|with the same arguments", self.text) is not None

    @property
    def raised(self):
        """Errors that its own body raises, and private functions of its module that it calls."""
        tree = ast.parse(textwrap.dedent(inspect.getsource(self.thing)))
        found, seen, waiting = set(), set(), [tree]
        around = vars(inspect.getmodule(self.thing))
        while waiting:
            for node in ast.walk(waiting.pop()):
                if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                    found |= {ast.unparse(node.exc.func)} & ERRORS
                called = (
                    node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
                )
                private = called.startswith("_") and called not in seen and called in around
                if private and inspect.isfunction(inspect.unwrap(around[called])):
                    seen.add(called)
                    source = inspect.getsource(inspect.unwrap(around[called]))
                    waiting.append(ast.parse(textwrap.dedent(source)))
        return found


def public():
    """Every public name, and every public method of a public class."""
    named = [(name, getattr(ts, name)) for name in ts.__all__ if name != "plots"]
    named += [(f"plots.{name}", getattr(plots, name)) for name in plots.__all__]
    for name, thing in named:
        yield Described(name, thing)
        if inspect.isclass(thing) and not issubclass(thing, Exception):
            yield from (Described(f"{name}.{each}", member) for each, member in methods(thing))


def methods(thing):
    """(name, function) of the public methods and properties that the package itself defines."""
    for each, member in inspect.getmembers_static(thing):
        member = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if not each.startswith("_") and inspect.isfunction(inspect.unwrap(member)):
            yield each, member


EVERY = list(public())
PLAIN = [each for each in EVERY if "." not in each.name or each.name.startswith("plots.")]


def test_there_is_something_to_check():
    assert len(EVERY) > 150
    assert {"SteeringVectors.scaled_to", "plots.pca", "sweep"} <= {each.name for each in EVERY}


@pytest.mark.parametrize("each", EVERY, ids=repr)
def test_it_says_in_one_line_what_it_is(each):
    first = each.text.split("\n")[0]
    assert first.endswith((".", "?")) or "." in first, first
    assert len(first) < 115


@pytest.mark.parametrize("each", [each for each in EVERY if each.parameters], ids=repr)
def test_every_parameter_is_explained_and_no_other(each):
    named = {
        name
        for entry in docstrings.entries(each.below("Args:"))
        for name in docstrings.names_of(entry)
    }  # fmt: skip
    assert named <= set(each.parameters)
    if not each.refers:
        assert set(each.parameters) - each.explained == set()


@pytest.mark.parametrize("each", [each for each in EVERY if each.returns_a_table], ids=repr)
def test_a_table_is_told_column_by_column(each):
    assert "\nReturns:\n" in each.text or re.search(
        r"`(label|review|dilemma|question|passage)`|same table", each.text
    )


@pytest.mark.parametrize("each", [each for each in EVERY if not inspect.isclass(each.thing)], ids=repr)
def test_what_it_raises_is_told(each):
    told = "\n".join(each.below("Raises:"))
    other = re.search(
        r"errors are as for `|[Rr]aises as `|what is raised, are those of|ValueError: as (for )?`", each.text
    )
    missing = {error for error in each.raised if error not in told and error not in each.text}
    assert other or not missing


@pytest.mark.parametrize("name", BORROWED)
def test_a_method_of_somebody_s_names_its_source(name):
    text = inspect.getdoc(getattr(ts, name))
    assert re.search(r"Source|et al\. \d{4}", text)
    assert re.search(r"\b(1[89]|20)\d\d\b", text)


def test_every_public_name_is_on_one_page_of_the_reference():
    named = [name for page in PAGES for name in site_pages.names_of(page)]
    public_names = {name for name in ts.__all__ if name != "plots"} | {
        f"plots.{name}" for name in plots.__all__
    }
    assert sorted(named) == sorted(public_names)


@pytest.mark.parametrize("each", PLAIN, ids=repr)
def test_the_reference_finds_a_name_where_it_is_defined(each):
    place, told = site_pages.home(each.name)
    assert place == f"{each.thing.__module__}.{each.thing.__qualname__}"
    assert told == each.text.split("\n")[0]


class Site:
    """The built pages."""

    def __init__(self, folder):
        self.folder = folder
        self.pages = {path: path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.html"))}

    @cached_property
    def anchors(self):
        return {path: set(re.findall(r'\bid="?([^\s">]+)', text)) for path, text in self.pages.items()}

    def addresses(self, tags="a|link|script|img|source|iframe|object"):
        """(page, address) of everything that a page leads to or loads."""
        pattern = re.compile(rf"<(?:{tags})\b[^>]*?\s(?:href|src|data)=[\"']?([^\s\"'>]+)")
        return [(path, found) for path, text in self.pages.items() for found in pattern.findall(text)]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built once, as `make docs` does; a warning is an error."""
    folder = tmp_path_factory.mktemp("site") / "site"
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "-f",
        str(DOCS / "mkdocs.yml"),
        "-d",
        str(folder),
    ]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=quiet, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    return Site(folder)


def test_the_site_loads_nothing_from_a_network(site):
    assert len(site.pages) > 15
    assert [each for each in site.addresses("link|script|img|source|iframe|object") if "//" in each[1]] == []
    styles = "".join(path.read_text(encoding="utf-8") for path in site.folder.rglob("*.css"))
    assert not re.findall(r"url\([\"']?https?:|@import [\"']?https?:", styles)


def test_every_link_within_the_site_leads_somewhere(site):
    wrong = []
    for page, address in site.addresses():
        if re.match(r"[a-z]+:", address):
            continue
        target, _, anchor = unquote(address).partition("#")
        path = (page.parent / target).resolve() if target else page
        path = path / "index.html" if path.is_dir() else path
        # On the page of what is not found, addresses are the server's.
        known = path.exists() and (not anchor or anchor in site.anchors.get(path, {anchor}))
        if not known and page.name != "404.html":
            wrong.append((page.name, address))
    assert wrong == []


def test_every_public_thing_has_its_place_in_the_built_reference(site):
    ids = set().union(*site.anchors.values())
    missing = [each.name for each in EVERY if place_of(each) not in ids]
    assert missing == []


def place_of(each):
    owner, dot, member = each.name.rpartition(".")
    if not dot or owner == "plots":
        return site_pages.home(each.name)[0]
    return f"{site_pages.home(owner)[0]}.{member}"


def test_the_pages_read_well_in_a_browser_wide_and_narrow(site):
    """Nothing is asked of a network, and no page is wider than its window."""
    from playwright.sync_api import sync_playwright

    asked, wide = [], []
    with sync_playwright() as started:
        browser = started.chromium.launch(
            executable_path="/usr/bin/chromium",
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        for width in (1280, 390):
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.on("request", lambda request: asked.append(request.url))
            for name in ("index", "correct", "files", "reference/evaluation", "reference/directions"):
                page.goto((site.folder / f"{name}.html").as_uri())
                if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                    wide.append((name, width))
        browser.close()
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert wide == []


def names_in(file):
    tree = ast.parse((ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"))
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    return {name for name in functions if name.startswith("test_")}


def test_every_promise_has_a_test_that_is_there():
    """Each row of "How it stays correct" names at least one; a name that is gone fails here."""
    page = written("correct")
    rows = [
        line
        for line in page.splitlines()
        if line.startswith("| ") and not line.startswith(("| promise", "|---"))
    ]
    assert len(rows) > 60
    assert [row for row in rows if not NAMED_TEST.search(row)] == []
    named = NAMED_TEST.findall(page)
    assert [(file, test) for file, test in named if test not in names_in(file)] == []


def test_every_defect_that_peers_have_is_among_the_promises():
    page = written("correct")
    missing = {test for test in names_in("test_pitfalls") if test not in page}
    # The same promise is told by a stronger test there.
    assert missing <= {"test_half_precision_is_added_in_float32"}


def blocks():
    """(page, code) of the Python on the written pages."""
    for path in WRITTEN:
        for code in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
            yield pytest.param(code, id=f"{path.stem}: {code.split(chr(10))[0][:40]}")


@pytest.mark.parametrize("code", list(blocks()))
def test_every_call_on_the_pages_has_arguments_that_there_are(code):
    called = 0
    for node in ast.walk(ast.parse(code)):
        name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
        if re.fullmatch(r"ts(\.\w+){1,2}", name):
            function = ts
            for part in name.split(".")[1:]:
                function = getattr(function, part)
            starred = [argument for argument in node.args if isinstance(argument, ast.Starred)]
            given = {keyword.arg: None for keyword in node.keywords if keyword.arg}
            inspect.signature(function).bind_partial(*[None] * (len(node.args) - len(starred)), **given)
            called += 1
    assert called or "ts." not in code


@pytest.mark.parametrize("code", list(blocks()))
def test_code_on_the_pages_fits_their_width(code):
    assert max(map(len, code.splitlines())) <= 92


@pytest.mark.model
def test_the_first_page_s_code_runs(embedded, monkeypatch, capsys):
    code = re.search(r"```python\n(.*?)```", written("index"), re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    monkeypatch.setattr(ts, "load_model", lambda: embedded)
    names = {}
    exec(code, names)
    assert names["separation"]["paired_accuracy"].max() > 0.9
    by_kind = names["effects"].query("layers == '17' and multiplier > 0 and not control")["shift"]
    assert len(by_kind) == 2
    assert (by_kind > 0).all()  # as the page says: both kinds move the same way
    assert "criterion_change" in capsys.readouterr().out
    assert names["figure"].data


def test_a_docstring_s_columns_become_a_list_and_its_names_are_taken_apart():
    text = (
        "Args:\n    a, b: both.\n\nReturns:\n    A row, and\n    n: prompts,\n        all.\n    NaN else.\n"
    )
    made = docstrings.readable(text)
    assert "    a: both.\n    b: both.\n" in made
    assert "**Returns:**\n\nA row, and\n\n- **n**: prompts,\n    all.\n\nNaN else." in made


def test_the_changelog_has_a_version_and_what_is_not_there():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## 0.1.0" in text
    assert "### Known limits" in text


def test_the_readme_s_notebooks_and_those_of_the_questions_are_the_same():
    told = set(re.findall(r"notebooks/(\w+)\.ipynb", written("questions")))
    assert told == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
