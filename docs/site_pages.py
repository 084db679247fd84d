"""Generated pages of the site: the reference, the source of the named tests, and links between them."""

import ast
import json
import re
import tomllib
from functools import cache
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

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
    markdown = markdown.replace("<!-- schema -->", schema_table()).replace(
        "<!-- columns -->", columns_table()
    )
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
