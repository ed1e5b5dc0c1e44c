"""The HTML pages of a report: static, no scripts, nothing loaded from elsewhere.

A page works from its folder: its figures and files are links relative to it.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nbformat import NotebookNode

INDEX = "index.html"
"""The page that links all others."""
_NAVIGATION = re.compile(r"<nav>.*?</nav>", re.DOTALL)
_STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #f4f5f7; color: #1d2733; font: 15px/1.55 system-ui, -apple-system, "Segoe UI",
  "Helvetica Neue", "DejaVu Sans", sans-serif; }
main { max-width: 1160px; margin: 0 auto; padding: 28px 32px 60px; background: #fff; min-height: 100vh; }
h1 { font-size: 27px; line-height: 1.25; margin: 8px 0 4px; }
h2 { font-size: 19px; margin: 40px 0 8px; padding-bottom: 4px; border-bottom: 1px solid #dfe3e8; }
h3 { font-size: 16px; margin: 26px 0 6px; }
p { margin: 8px 0; max-width: 88ch; }
p.lead { font-size: 16px; }
p.caption { color: #4a5665; font-size: 13.5px; }
p.note { background: #fff7e0; border-left: 3px solid #e69f00; padding: 8px 12px; }
p.files { font-size: 13px; margin-top: 2px; }
a { color: #0060a0; }
img { max-width: 100%; height: auto; display: block; margin: 14px auto 6px; }
details { font-size: 13.5px; margin: 8px 0; color: #4a5665; }
div.table { overflow-x: auto; margin: 10px 0; max-height: 75vh; overflow-y: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th { position: sticky; top: 0; background: #fff; text-align: left; font-weight: 600; vertical-align: bottom;
  box-shadow: inset 0 -1.5px 0 #9aa5b1; }
th, td { padding: 4px 10px 4px 0; border-bottom: 1px solid #edf0f3; }
td { vertical-align: top; }
th.number, td.number { text-align: right; white-space: nowrap; }
th.number { white-space: normal; }
td.text { white-space: nowrap; }
td.long { white-space: normal; overflow-wrap: anywhere; min-width: 13em; }
td.state-failed, td.state-unknown { color: #b3261e; font-weight: 600; }
td.state-interrupted, td.state-not-started { color: #9a5b00; font-weight: 600; }
td.state-done { color: #1c6b3c; }
td.state-running { color: #0060a0; }
nav { display: flex; flex-wrap: wrap; gap: 4px 20px; font-size: 13.5px; padding-bottom: 10px; margin-bottom: 18px;
  border-bottom: 1px solid #dfe3e8; }
nav a { text-decoration: none; }
nav a:hover { text-decoration: underline; }
nav a[aria-current] { color: #1d2733; font-weight: 600; }
p.failed { background: #fdecea; border-left: 3px solid #b3261e; padding: 8px 12px; max-width: none; }
section.card { border: 1px solid #dfe3e8; border-radius: 6px; padding: 14px 20px 12px; margin: 18px 0; }
section.card h2 { margin: 0 0 6px; padding: 0; border: 0; }
section.card p { max-width: none; }
section.card img { margin: 12px auto; max-height: 520px; object-fit: contain; object-position: top; }
section.card details { color: inherit; }
ul.files { list-style: none; margin: 6px 0; padding: 0; font-size: 12.5px; color: #4a5665; }
ul.files li { margin: 2px 0; overflow-wrap: anywhere; }
dl.facts { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 3px 22px; font-size: 13px;
  margin: 10px 0; }
dl.facts dt { color: #4a5665; }
dl.facts dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 800px) {
  main { padding: 16px 16px 40px; }
  h1 { font-size: 22px; }
  section.card { padding: 12px 14px; }
  dl.facts { display: block; }
  dl.facts dd { margin-bottom: 6px; }
}
@media print {
  nav { display: none; }
  section.card { break-inside: avoid; }
  a { color: inherit; }
}
@media print { body { background: #fff; } main { padding: 0; } div.table { max-height: none; overflow: visible; } }
"""


def page(title: str, body: str) -> str:
    """A complete HTML page in the reports' style, with an empty navigation bar for `with_navigation` to fill.

    Args:
        title: the page's title, plain text.
        body: HTML of its content.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n<nav></nav>\n{body}\n</main>\n</body>\n</html>\n"
    )


def with_navigation(content: str, links: Mapping[str, str], current: str) -> str:
    """A page with its navigation bar filled, whatever it held before.

    Args:
        content: the page, as `page` makes it.
        links: title by file name, in the order of the bar.
        current: file name of the page itself.
    """
    here = ' aria-current="page"'
    items = "\n".join(
        f'<a href="{html.escape(name)}"{here if name == current else ""}>{html.escape(title)}</a>'
        for name, title in links.items()
    )
    return _NAVIGATION.sub(lambda _: f"<nav>\n{items}\n</nav>", content, count=1)


def image(source: str, description: str, width: int | None = None) -> str:
    """An image.

    Args:
        source: its path, relative to the page.
        description: what is to be seen, for readers who cannot see it.
        width: pixels; None: as wide as it is.
    """
    size = f' width="{width}"' if width is not None else ""
    return f'<img src="{html.escape(source)}" alt="{html.escape(description)}"{size}>'


def images(content: str) -> dict[str, tuple[str, int | None]]:
    """A page's images by source: what is to be seen in each, and how wide it is shown, in pixels; see `image`."""
    found: dict[str, tuple[str, int | None]] = {}

    class Images(HTMLParser):
        """Collects them."""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            """Take an image down."""
            given = dict(attrs)
            width = given.get("width") or ""
            if tag == "img":
                found[given.get("src") or ""] = (given.get("alt") or "", int(width) if width.isdecimal() else None)

    Images().feed(content)
    return found


def notebook_body(notebook: NotebookNode, folder: Path) -> str:
    """An executed notebook's outputs as HTML, without its code and text cells.

    Figures are shown from their PNG files: embedded they would make the page a third larger than the files, once more
    beside them.

    Args:
        notebook: the executed notebook; its outputs are changed.
        folder: where it wrote `figures/`.
    """
    from nbconvert import HTMLExporter

    files = {path.read_bytes(): path.relative_to(folder).as_posix() for path in folder.glob("figures/*.png")}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [_with_linked_image(output, files) for output in cell.outputs]
    exporter = HTMLExporter(
        template_name="basic",
        exclude_input=True,
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_markdown=True,  # the template's own words are for those who open the notebook
    )
    body, _ = exporter.from_notebook_node(notebook)
    return str(body)


def _with_linked_image(output: Any, files: Mapping[bytes, str]) -> Any:
    """An output whose picture is the content of one of the files shows that file instead."""
    encoded = output.get("data", {}).get("image/png")
    source = files.get(base64.b64decode(encoded)) if encoded else None
    if source is not None:
        details = output.get("metadata", {}).get("image/png", {})
        output.data = {"text/html": image(source, details.get("alt", ""), details.get("width"))}
    return output


def files_list(paths: Sequence[str]) -> str:
    """Links to files, one line for those that differ only in their ending: `curves: PNG · SVG · PDF`."""
    names = {"png": "PNG", "svg": "SVG", "pdf": "PDF", "csv": "CSV", "tex": "LaTeX", "mp4": "MP4"}
    stems: dict[str, list[str]] = {}
    for path in paths:
        stems.setdefault(Path(path).stem, []).append(path)
    order = {f".{ending}": place for place, ending in enumerate(names)}
    lines = []
    for stem, same in stems.items():
        same = sorted(same, key=lambda path: (order.get(Path(path).suffix, len(order)), path))
        endings = [(path, Path(path).suffix[1:]) for path in same]
        links = [f'<a href="{html.escape(p)}">{names.get(e, html.escape(e))}</a>' for p, e in endings]
        lines.append(f"<li>{html.escape(stem)}: {' · '.join(links)}</li>")
    return f'<ul class="files">{"".join(lines)}</ul>'
