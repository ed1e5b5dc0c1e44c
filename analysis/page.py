"""The HTML page around an executed notebook: one file, no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

import html

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
@media print { body { background: #fff; } main { padding: 0; } div.table { max-height: none; overflow: visible; } }
"""


def page(title: str, body: str) -> str:
    """A complete HTML page in the reports' style.

    Args:
        title: the page's title, plain text.
        body: HTML of its content.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )
