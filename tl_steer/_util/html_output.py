"""`Html`: a fragment of HTML for notebooks, pages and images."""

import asyncio
import base64
import hashlib
import html
import tempfile
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .file_io import atomic
from .validation import checked

MAX_HEIGHT = 16_384  # pixels of a screenshot; Chromium repeats what is below
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "font-src data:"
)
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>body {{ margin: 0; padding: 1rem; }} @media print {{ body {{ padding: .5rem; }} }}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""
# Light colours, dark ones, and where each applies: the system's setting, or the notebook's theme
# (JupyterLab, VS Code, Colab), which may differ from it. Every fragment has its own background.
COLOURS = {
    "light": "--paper: #fff; --ink: #1f242a; --soft: #5b626b; --line: #d9dde2; --tint: #eef1f4; "
    "--mark: #ffe08a;",
    "dark": "--paper: #16191d; --ink: #e8eaed; --soft: #a9b0b9; --line: #3b424b; --tint: #252a31; "
    "--mark: #6b5310;",
}
IS_LIGHT = ('body[data-jp-theme-light="true"]', "body.vscode-light", "html[theme=light]")
IS_DARK = ('body[data-jp-theme-light="false"]', "body.vscode-dark", "html[theme=dark]")
STYLE = """
.tls { position: relative; color: var(--ink); background: var(--paper); padding: .6rem .8rem;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, Arial, "Liberation Sans", sans-serif; }
.tls * { box-sizing: border-box; }
.tls [hidden] { display: none !important; }
.tls .tls-title { font-weight: 600; margin: 0; font-size: 1rem; }
.tls .tls-note { color: var(--soft); font-size: .85rem; margin: 0; }
.tls :is(input, label, fieldset) { font: inherit; color: inherit; }
.tls :focus-visible { outline: 2px solid #2f86c1; outline-offset: 1px; }
@media print { .tls { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


@dataclass(frozen=True)
class Html:
    """A fragment of HTML, displayed in notebooks.

    Attributes:
        body: the fragment, with its own style and script.
        title: of a page.
    """

    body: str
    title: str

    def _repr_html_(self) -> str:
        return self.body

    def __str__(self) -> str:
        return f"{self.title}: HTML, {len(self.body):,} characters; .save(path) or .write_image(path)"

    __repr__ = __str__

    @property
    def page(self) -> str:
        """A complete page, which opens without a network."""
        return PAGE.format(policy=POLICY, title=html.escape(self.title), body=self.body)

    @checked
    def save(self, path: str | Path) -> None:
        """Write a complete page."""
        with atomic(path) as temporary:
            temporary.write_text(self.page, encoding="utf-8")

    @checked
    def write_image(self, path: str | Path, *, width: int = 900, scale: float = 2) -> None:
        """Write a PNG of the whole fragment as printed: light, without controls.

        Args:
            path: of the file.
            width: of the page, in CSS pixels.
            scale: pixels of the image per CSS pixel.

        Raises:
            ImportError: the extra "images" is not installed.
            ValueError: width below 100 or above 10,000, scale not above 0 or above 10, or an image of more
                than 16,384 rows of pixels.
            RuntimeError: there is no Chrome or Chromium (BROWSER_PATH in the environment may name one), or it
                failed.
        """
        if not (100 <= width <= 10_000 and 0 < scale <= 10):
            raise ValueError(
                f"width={width}, scale={scale}: expected a width from 100 to 10000 and a scale up to 10."
            )
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "page.html"
            page.write_text(self.page, encoding="utf-8")
            content = _run(_screenshot(page.as_uri(), width, scale))
        with atomic(path) as temporary:
            temporary.write_bytes(content)


def fragment(
    content: str,
    *,
    title: str,
    style: str = "",
    script: str = "",
    colours: dict[str, str] | None = None,
) -> Html:
    """`Html` of a region with its style, and a script that gets the region as `root`.

    Args:
        content: markup, escaped where it has texts of others.
        title: of the region and the page, as text.
        style: rules besides `STYLE`.
        colours: custom properties of "light" and "dark" besides `COLOURS`.
        script: statements. The id is a hash of the content, so that equal objects have equal output.
    """
    schemes = {scheme: f"{each} {(colours or {}).get(scheme, '')}" for scheme, each in COLOURS.items()}
    name = "tls-" + hashlib.sha256(f"{content}{style}{script}".encode(errors="replace")).hexdigest()[:12]
    rules = f"<style>{_themes(schemes)}{STYLE}{style}</style>"
    # A notebook may show the same output twice.
    code = f"""<script>(() => {{ for (const root of document.querySelectorAll('[data-tls="{name}"]')) {{
if (root.dataset.ready) continue;
root.dataset.ready = "yes";
{script}
}} }})();</script>"""
    region = f'<div class="tls" data-tls="{name}" role="region" aria-label="{html.escape(title)}">'
    return Html(f"{rules}{region}{content}</div>{code if script else ''}", title)


def _themes(colours: dict[str, str]) -> str:
    """Rules for the light and the dark colours; a printed page is light."""
    rules = f".tls {{ color-scheme: light; {colours['light']} }}\n"
    dark = f".tls {{ color-scheme: dark; {colours['dark']} }}"
    rules += f"@media screen and (prefers-color-scheme: dark) {{ {dark} }}\n"
    for scheme, themes in (("light", IS_LIGHT), ("dark", IS_DARK)):
        selector = ", ".join(f"{theme} .tls" for theme in themes)
        rules += f"@media screen {{ {selector} {{ color-scheme: {scheme}; {colours[scheme]} }} }}\n"
    return rules


def _run(task: Coroutine[Any, Any, bytes]) -> bytes:
    """Run a coroutine to its end, in a thread, because a notebook's thread has an event loop already."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, task).result()


async def _screenshot(address: str, width: int, scale: float) -> bytes:
    """PNG of a whole page, as printed."""
    try:
        from choreographer import Browser
    except ImportError as error:
        raise ImportError(
            "write_image needs choreographer, which comes with kaleido: pip install 'tl-steer[images]'."
        ) from error
    async with Browser() as browser:
        tab = browser.get_tab() or await browser.create_tab()

        async def send(command: str, **parameters: Any) -> dict[str, Any]:
            response = await tab.send_command(command, parameters)
            if "error" in response:
                raise RuntimeError(f"the browser rejected {command}: {response['error'].get('message')}")
            return response["result"]

        size = {"width": width, "height": 100, "deviceScaleFactor": scale, "mobile": False}
        await send("Emulation.setDeviceMetricsOverride", **size)
        await send("Emulation.setEmulatedMedia", media="print")
        await send("Page.enable")
        loaded = tab.subscribe_once("Page.loadEventFired")
        await send("Page.navigate", url=address)
        await loaded
        height = (await send("Page.getLayoutMetrics"))["cssContentSize"]["height"]
        if height * scale > MAX_HEIGHT:
            raise ValueError(
                f"the image would have {height * scale:.0f} rows of pixels, more than {MAX_HEIGHT}: pass a "
                f"smaller scale (now {scale}) or a larger width (now {width}), or select rows of the table."
            )
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        image = await send("Page.captureScreenshot", clip=clip, captureBeyondViewport=True, format="png")
        return base64.b64decode(image["data"])
