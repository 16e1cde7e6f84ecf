"""Elements of static HTML pages: one style, and texts, tables, pictures and recordings that need no other file.

Every argument called `text`, `name` or `title` is escaped. `body`, and the cells of a table, are HTML already.
"""

import base64
from collections.abc import Iterable, Sequence
from html import escape

# Colours of Okabe and Ito, which people with any colour vision can tell apart, darkened where white paper needs it. Each has
# a contrast of 3 to 1 or more with both papers.
BLUE, VERMILION, GREEN, PURPLE, OCHRE, GREY = "#0072b2", "#d55e00", "#009e73", "#bc6b98", "#a87400", "#7d8590"
STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --paper: #ffffff; --faint: #59636e; --line: #d1d9e0;
  --substituted: #ffe2c2; --deleted: #d3e8fb; --inserted: #ead6f5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --paper: #17191c; --faint: #a0a8b0; --line: #3a4048;
  --substituted: #6b3a06; --deleted: #0f4672; --inserted: #583070; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76em; margin: 2em auto; padding: 0 1em; color: var(--ink);
  background: var(--paper); }
h1, h2, h3 { font-weight: 600; line-height: 1.25; } h2 { margin-top: 2em; border-bottom: 1px solid var(--line); }
p, figcaption { color: var(--faint); } p { max-width: 50em; }
table { border-collapse: collapse; } .wide { overflow-x: auto; }
td, th { padding: 0.2em 1.5em 0.2em 0; text-align: left; vertical-align: top; font-weight: normal; }
th { color: var(--faint); border-bottom: 1px solid var(--line); } .n { text-align: right; white-space: nowrap;
  font-variant-numeric: tabular-nums; }
.charts { display: flex; flex-wrap: wrap; gap: 1.5em; margin-top: 1.5em; } figure { margin: 0; max-width: 100%; }
svg { max-width: 100%; height: auto; } svg .point { opacity: 0; } svg .point:hover { opacity: 1; }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(17em, 100%), 1fr)); gap: 1.5em; }
.example { border-top: 1px solid var(--line); padding-top: 0.5em; overflow-wrap: anywhere; }
.example img { display: block; max-width: 100%; max-height: 16em; } .sample img { width: 13em; max-height: none; }
.sample td:nth-child(-n+2) { white-space: nowrap; } .charts td { overflow-wrap: anywhere; min-width: 3em; }
.media { display: flex; flex-wrap: wrap; gap: 1.5em; }
b { color: var(--faint); font-weight: normal; } audio { width: 100%; max-width: 24em; height: 2.5em; }
.sub, del, ins { border-radius: 0.2em; padding: 0 0.2em; } .sub { background: var(--substituted); }
del { background: var(--deleted); } ins { background: var(--inserted); text-decoration: underline; }
"""


def document(title: str, body: str) -> str:
    """A whole page."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{body}</body></html>\n"
    )


def section(title: str, body: str, key: str) -> str:
    """A part of a page with a heading; `key` is its id."""
    return f'<section id="{escape(key)}"><h2>{escape(title)}</h2>\n{body}</section>\n'


def labelled(name: str, text: str) -> str:
    """A faint name before a text."""
    return f"<b>{escape(name)}</b> {escape(text)}"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 1) -> str:
    """A table whose columns from `numbers` on are aligned to the right.

    Args:
      headings: texts; none: the table has no row of headings.
      rows: of HTML.
    """

    def line(kind: str, cells: Sequence[str]) -> str:
        made = (f"<{kind}{' class=n' if at >= numbers else ''}>{cell}</{kind}>" for at, cell in enumerate(cells))
        return f"<tr>{''.join(made)}</tr>"

    head = line("th", [escape(heading) for heading in headings]) if headings else ""
    return f"<div class=wide><table>{head}{''.join(line('td', row) for row in rows)}</table></div>\n"


def figures(charts: Iterable[str]) -> str:
    """Charts side by side."""
    return f"<div class=charts>{''.join(f'<figure>{chart}</figure>' for chart in charts)}</div>\n"


def data_uri(kind: str, content: bytes) -> str:
    """The address of a file that is inside the page; `kind` is its media type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def media(name: str, shown: str | tuple[str, bytes]) -> str:
    """A text, or a picture or recording as (media type, file); the name is also its description for people who cannot see it."""
    if isinstance(shown, str):
        return labelled(name, shown)
    uri = data_uri(*shown)
    if shown[0].startswith("audio"):
        return f'<audio controls preload="none" aria-label="{escape(name)}" src="{uri}"></audio>'
    return f'<img src="{uri}" alt="{escape(name)}">'
