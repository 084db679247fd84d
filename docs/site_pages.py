"""What the site has beside its written pages: the reference, the tests behind the promises, and links."""

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).parent
ROOT = DOCS.parent
PAGES = tomllib.loads((DOCS / "reference.toml").read_text(encoding="utf-8"))["page"]
TEST = re.compile(r"`(test_\w+)\.py::(test_\w+)`")
CODE = re.compile(r"(?<!<a href=\")<code>(?:ts\.)?((?:[a-z]+\.)?\w+)(\([^<]*\))?</code>(?!</a>)")
TESTS_PAGE = "the-tests.md"


@cache
def home(name: str, module: str = "tl_steer") -> tuple[str, str]:
    """Where a public name is defined, "tl_steer._capture.capture", and its docstring's first line.

    Raises:
        KeyError: the module neither defines nor imports it.
    """
    namespace, _, bare = name.rpartition(".")
    if namespace:
        return home(
            bare, "tl_steer.directions.exchange" if namespace == "exchange" else f"tl_steer.{namespace}"
        )
    tree = _parsed(module)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name and node in tree.body:
            return f"{module}.{name}", (ast.get_docstring(node) or "").split("\n")[0]
        if isinstance(node, ast.ImportFrom) and any(each.name == name for each in node.names):
            package = module if _file(module).name == "__init__.py" else module.rpartition(".")[0]
            above = package.split(".")[: len(package.split(".")) + 1 - node.level]
            return home(name, ".".join([*above, *([node.module] if node.module else [])]))
    raise KeyError(f"{module} has no {name}")


@cache
def _parsed(module: str) -> ast.Module:
    return ast.parse(_file(module).read_text(encoding="utf-8"))


def _file(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def names_of(page: dict) -> list[str]:
    """The public names on a page of the reference."""
    return [name for group in page["group"] for name in group["names"]]


def reference_page(page: dict) -> str:
    """A table of what is there, then each with its signature and docstring."""
    lines = [f"# {page['title']}", "", page["intro"].strip(), ""]
    for group in page["group"]:
        lines += [f"| {group['title']} | |", "|---|---|"]
        for name in group["names"]:
            place, told = home(name)
            lines.append(f"| [`{name}`](#{place}) | {told.replace('|', '&#124;')} |")
        lines.append("")
    for group in page["group"]:
        lines += [f"## {group['title']}", ""]
        for name in group["names"]:
            options = [f"      heading: {name}", f"      toc_label: {name}"]
            lines += [f"::: {home(name)[0]}", "    options:", *options, ""]
    return "\n".join(lines)


def tests_named(text: str) -> list[tuple[str, str]]:
    """(file, test) for every test that a page names, each once."""
    return list(dict.fromkeys(TEST.findall(text)))


def tests_page() -> str:
    """The tests that the written pages name, as they are in the source."""
    named: dict[str, list[str]] = {}
    for path in sorted((DOCS / "pages").glob("*.md")):
        for file, test in tests_named(path.read_text(encoding="utf-8")):
            named.setdefault(file, [])
            named[file] += [] if test in named[file] else [test]
    lines = [
        "# The tests themselves",
        "",
        "Those that [How it stays correct](correct.md) names, as they stand.",
        "",
    ]
    for file in sorted(named):
        source = (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8")
        nodes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
        lines += [f"## {file}.py", ""]
        for test in named[file]:
            lines += [
                f"### {test} {{: #{file}-{test} }}",
                "",
                "```python",
                *_lines(source, nodes[test]),
                "```",
                "",
            ]
    return "\n".join(lines)


def _lines(source: str, node: ast.FunctionDef) -> list[str]:
    start = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    return source.splitlines()[start - 1 : node.end_lineno]


def schema_table() -> str:
    """What a vector's file says beside its tensors, from the JSON schema that it is checked with."""
    schema = json.loads((ROOT / "tl_steer/directions/vectors.schema.json").read_text(encoding="utf-8"))
    lines = ["| key | type | what it is |", "|---|---|---|"]
    for key, told in schema["properties"].items():
        kinds = [told["type"]] if isinstance(told["type"], str) else told["type"]
        inner = ", ".join(f"`{each}`" for each in told.get("properties", ()))
        text = told.get("description", "") + (f" ({inner})" if inner else "")
        lines.append(f"| `{key}` | {', '.join(kinds)} | {text.strip()} |")
    return "\n".join([*lines, "", "The schema itself is `tl_steer/directions/vectors.schema.json`."])


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that nobody writes."""
    for page in PAGES:
        files.append(File.generated(config, f"reference/{page['file']}.md", content=reference_page(page)))
    files.append(File.generated(config, TESTS_PAGE, content=tests_page()))
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    files.append(File.generated(config, "changes.md", content=changes))
    return files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the reference's pages into the navigation, in their order, and the tests behind the promises."""
    pages = [{page["title"]: f"reference/{page['file']}.md"} for page in PAGES]
    nav = [{"Reference": pages} if "Reference" in entry else entry for entry in config.nav]
    at = next(place for place, entry in enumerate(nav) if "How it stays correct" in entry)
    config.nav = [*nav[: at + 1], {"The tests themselves": TESTS_PAGE}, *nav[at + 1 :]]
    return config


def on_page_markdown(markdown: str, *, page: Page, **_: object) -> str:
    """Tests that are named become links to what they say."""
    if page.file.src_uri == TESTS_PAGE:
        return markdown
    markdown = markdown.replace("<!-- schema -->", schema_table())
    return TEST.sub(lambda found: f"[`{found[2]}`]({TESTS_PAGE}#{found[1]}-{found[2]})", markdown)


def on_page_content(html: str, *, page: Page, **_: object) -> str:
    """Public names in running text become links to the reference; in links, names may break."""
    html = re.sub(r"(?<=<code>)[\w.]+(?=</code></a>)", _breakable, html)
    places = dict(_places())
    up = "../" * page.file.src_uri.count("/")

    def linked(found: re.Match) -> str:
        place = places.get(found[1])
        return f'<a class="name" href="{up}{place}">{found[0]}</a>' if place else found[0]

    # Neither inside a link or a heading, nor in a block of code.
    parts = re.split(r"(<a\b.*?</a>|<pre\b.*?</pre>|<h\d\b.*?</h\d>)", html, flags=re.DOTALL)
    return "".join(CODE.sub(linked, part) if number % 2 == 0 else part for number, part in enumerate(parts))


def _breakable(name: re.Match) -> str:
    return re.sub("[_.]", r"\g<0><wbr>", name[0])


def _places() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for name in names_of(page):
            yield name, f"reference/{page['file']}.html#{home(name)[0]}"
