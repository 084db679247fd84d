"""Generated pages of the site: the reference, the source of the named tests, and links between them."""

import ast
import dataclasses
import inspect
import json
import re
import tomllib
import types
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic.fields import FieldInfo

from tl_steer.experiments.config_file import NOT_IN_FILES, Experiment
from tl_steer.tables import SCHEMA

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PAGES = tomllib.loads((DOCS / "reference.toml").read_text(encoding="utf-8"))["page"]
TEST = re.compile(r"`(test_\w+)\.py::(test_\w+)`")
CODE = re.compile(r"(?<!<a href=\")<code>(?:ts\.)?((?:[a-z]+\.)?\w+)(\([^<]*\))?</code>(?!</a>)")
TESTS_PAGE = "the-tests.md"


@cache
def home(name: str, module: str = "tl_steer._public") -> tuple[str, str]:
    """The definition of a public name ("tl_steer._capture.capture") and its docstring's first line.

    Raises:
        KeyError: the module neither defines nor imports it.
    """
    namespace, _, bare = name.rpartition(".")
    if namespace:
        return home(
            bare, "tl_steer.directions.exchange" if namespace == "exchange" else f"tl_steer.{namespace}"
        )
    tree = ast.parse(_file(module).read_text(encoding="utf-8"))
    for node in ast.walk(tree):  # imports also below `if TYPE_CHECKING`
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name and node in tree.body:
            return f"{module}.{name}", (ast.get_docstring(node) or "").split("\n")[0]
        if isinstance(node, ast.ImportFrom) and any(each.name == name for each in node.names):
            package = module if _file(module).name == "__init__.py" else module.rpartition(".")[0]
            above = package.split(".")[: len(package.split(".")) + 1 - node.level]
            return home(name, ".".join([*above, *([node.module] if node.module else [])]))
    raise KeyError(f"{module} has no {name}")


def _file(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def names_of(page: dict) -> list[str]:
    """The public names on a page of the reference."""
    return [name for group in page["group"] for name in group["names"]]


def reference_page(page: dict) -> str:
    """A table of the names of each group, then each name with its signature and docstring."""
    lines = [f"# {page['title']}", "", page["intro"].strip(), ""]
    for group in page["group"]:
        lines += [f"| {group['title']} | |", "|---|---|"]
        for name in group["names"]:
            anchor, summary = home(name)
            lines.append(f"| [`{name}`](#{anchor}) | {summary.replace('|', '&#124;')} |")
        lines.append("")
    for group in page["group"]:
        lines += [f"## {group['title']}", ""]
        for name in group["names"]:
            lines += [f"::: {home(name)[0]}", "    options:", f"      heading: {name}"]
            lines += [f"      toc_label: {name}", ""]
    return "\n".join(lines)


def tests_named(text: str) -> list[tuple[str, str]]:
    """(file, test) of every test named on a page, each once."""
    return list(dict.fromkeys(TEST.findall(text)))


def tests_page() -> str:
    """The source of the tests named on the written pages."""
    named: dict[str, list[str]] = {}
    pages = sorted((DOCS / "pages").glob("*.md"))
    for file, test in tests_named("\n".join(path.read_text(encoding="utf-8") for path in pages)):
        named.setdefault(file, []).append(test)
    lines = ["# The tests", "", "The source of the tests named in [How it stays correct](correct.md).", ""]
    for file in sorted(named):
        source = (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8")
        nodes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
        lines += [f"## {file}.py", ""]
        for test in named[file]:
            start = min(node.lineno for node in (nodes[test], *nodes[test].decorator_list))
            code = source.splitlines()[start - 1 : nodes[test].end_lineno]
            lines += [f"### {test} {{: #{file}-{test} }}", "", "```python", *code, "```", ""]
    return "\n".join(lines)


def schema_table() -> str:
    """The metadata of a vector file, from the JSON schema that validates it."""
    schema = json.loads((ROOT / "tl_steer/directions/vectors.schema.json").read_text(encoding="utf-8"))
    lines = ["| key | type | description |", "|---|---|---|"]
    for key, entry in schema["properties"].items():
        types = [entry["type"]] if isinstance(entry["type"], str) else entry["type"]
        inner = ", ".join(f"`{each}`" for each in entry.get("properties", ()))
        text = entry.get("description", "") + (f" ({inner})" if inner else "")
        lines.append(f"| `{key}` | {', '.join(types)} | {text.strip()} |")
    return "\n".join([*lines, "", "The schema is `tl_steer/directions/vectors.schema.json`."])


def columns_table() -> str:
    """Every column with its type, meaning and producers, from the schema of the tables."""
    lines = ["| column | type | contents | tables of |", "|---|---|---|---|"]
    for name, column in SCHEMA.items():
        producers = ", ".join(f"`{each}`" for each in column.producers.split(", "))
        lines.append(f"| `{name.rpartition('.')[2]}` | {column.type} | {column.label} | {producers} |")
    return "\n".join(lines)


TOML_TYPES = {str: "text", bool: "true or false", int: "whole number", float: "number"}


def experiment_tables() -> dict[str, list[type]]:
    """The dataclasses of each table of an experiment file by its name; "" is outside of tables."""
    members = {name: _members(info.annotation) for name, info in Experiment.__pydantic_fields__.items()}
    tables = {name: list(filter(dataclasses.is_dataclass, each)) for name, each in members.items()}
    return {"": [Experiment]} | {name: classes for name, classes in tables.items() if classes}


def keys_of(owner: type) -> list[tuple[str, str, str, str]]:
    """(key, type in the terms of TOML, default, description) of a table; inherited keys last."""
    described, fields = descriptions(owner), owner.__pydantic_fields__
    names = [name for name in fields if name not in NOT_IN_FILES]
    if owner is Experiment:
        names = [name for name in names if name not in experiment_tables()]
    names.sort(key=lambda name: name not in owner.__annotations__)
    return [
        (name, toml_type(fields[name].annotation), _default(fields[name]), described.get(name, ""))
        for name in names
    ]


def descriptions(owner: type) -> dict[str, str]:
    """The description of each key, from the `Attributes:` sections of a dataclass and of its bases."""
    texts = {}
    for base in reversed(owner.__mro__):
        _, _, section = inspect.cleandoc(base.__doc__ or "").partition("\nAttributes:\n")
        for name, text in re.findall(r"^    (\w+): (.*(?:\n     .*)*)", section, re.MULTILINE):
            texts[name] = " ".join(text.split())
    return texts


def toml_type(hint: Any) -> str:
    """A type in the terms of TOML."""
    members = [each for each in _members(hint) if each is not type(None)]
    if len(members) > 1:
        return " or ".join(dict.fromkeys(map(toml_type, members)))
    (member,) = members
    origin, arguments = get_origin(member), get_args(member)
    if origin is Literal:
        return " or ".join(f'`"{each}"`' for each in arguments)
    if origin is tuple:
        inner = toml_type(arguments[0])
        return f"list of ({inner})" if " or " in inner else f"list of {inner}"
    return f"table of {toml_type(arguments[1])}" if origin is not None else TOML_TYPES[member]


def experiment_keys() -> str:
    """Every key of an experiment file, from the dataclasses that validate it."""
    lines = []
    for name, classes in experiment_tables().items():
        lines += [f"## [{name}]" if name else "## Outside of tables", ""]
        for owner in classes:
            summary = inspect.getdoc(owner).split("\n")[0].removeprefix(f"[{name}]").strip(" :")
            if name:
                lines += [
                    f"### {summary.rstrip('.')}" if len(classes) > 1 else summary[0].upper() + summary[1:],
                    "",
                ]
            lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
            lines += [f"| `{key}` | {' | '.join(texts)} |" for key, *texts in keys_of(owner)]
            lines.append("")
    return "\n".join(lines)


def _members(hint: Any) -> list[Any]:
    """The members of a union, or the type itself, without annotations."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) in (Union, types.UnionType):
        return [member for each in get_args(hint) for member in _members(each)]
    return [hint]


def _default(info: FieldInfo) -> str:
    """The default as it is written in TOML; empty if TOML cannot write it."""
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    return f"`{json.dumps(value)}`" if value not in (None, (), {}) else ""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages."""
    generated = {f"reference/{page['file']}.md": reference_page(page) for page in PAGES}
    generated[TESTS_PAGE] = tests_page()
    generated["changes.md"] = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    for path, content in generated.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the reference's pages, in order, and the page of tests to the navigation."""
    pages = [{page["title"]: f"reference/{page['file']}.md"} for page in PAGES]
    nav = [{"Reference": pages} if "Reference" in entry else entry for entry in config.nav]
    after = next(index for index, entry in enumerate(nav, 1) if "How it stays correct" in entry)
    config.nav = [*nav[:after], {"The tests": TESTS_PAGE}, *nav[after:]]
    return config


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """Named tests become links to their source."""
    if page.file.src_uri == TESTS_PAGE:
        return markdown
    tables = {"schema": schema_table, "columns": columns_table, "experiment": experiment_keys}
    for name, table in tables.items():
        if (comment := f"<!-- {name} -->") in markdown:
            markdown = markdown.replace(comment, table())
    return TEST.sub(lambda match: f"[`{match[2]}`]({TESTS_PAGE}#{match[1]}-{match[2]})", markdown)


def on_page_content(html: str, *, page: Page, **_: object) -> str:
    """Public names in running text become links to the reference; names in links may wrap."""
    html = re.sub(
        r"(?<=<code>)[\w.]+(?=</code></a>)", lambda name: re.sub("[_.]", r"\g<0><wbr>", name[0]), html
    )
    pages = {name: page["file"] for page in PAGES for name in names_of(page)}
    up = "../" * page.file.src_uri.count("/")

    def linked(match: re.Match) -> str:
        if match[1] not in pages:
            return match[0]
        address = f"{up}reference/{pages[match[1]]}.html#{home(match[1])[0]}"
        return f'<a class="name" href="{address}">{match[0]}</a>'

    # Not inside links, headings and blocks of code.
    parts = re.split(r"(<a\b.*?</a>|<pre\b.*?</pre>|<h\d\b.*?</h\d>)", html, flags=re.DOTALL)
    return "".join(CODE.sub(linked, part) if number % 2 == 0 else part for number, part in enumerate(parts))
