"""A self-contained page in the project's look: tiles, tables and figures that open offline."""

from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from rayrlhf.files import write_whole
from rayrlhf.report.drawing import Drawn, with_own_ids

_SHORT = 12
"""Characters of a cell that is not broken."""


def write_page(path: Path, *, title: str, subtitle: str, parts: Sequence[str], footer: str) -> Path:
    """Write the parts that are not empty as one page, in one rename."""
    template = Template(resources.files("rayrlhf.report").joinpath("page.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=escape(title),
        subtitle=escape(subtitle),
        body="\n".join(part for part in parts if part),
        footer=escape(footer),
    )
    write_whole(path, page)
    return path


def tile(name: str, value: str, note: str, *, bar: str = "") -> str:
    """One figure that is read at a glance."""
    return (
        f'<div class="tile"><span class="name">{escape(name)}</span><b>{escape(value)}</b>{bar}'
        f'<span class="note">{escape(note)}</span></div>'
    )


def tiles(found: Sequence[str]) -> str:
    """Tiles beside each other."""
    return f'<div class="tiles">{"".join(found)}</div>' if found else ""


def figures(title: str, drawn: Sequence[Drawn]) -> str:
    """Figures under a heading; nothing where there are none."""
    if not drawn:
        return ""
    body = "".join(
        f"<figure><h3>{escape(figure.title)}</h3><figcaption>{escape(figure.caption)}</figcaption>"
        f"{with_own_ids(figure.svg, f'{title.split()[-1]}-{i}')}</figure>"
        for i, figure in enumerate(drawn)
    )
    return f'<h2>{escape(title)}</h2><div class="figures">{body}</div>'


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, note: str = "") -> str:
    """A table under a heading, and a note above it; nothing without rows."""
    if not rows:
        return ""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns) if any(columns) else ""
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    heading = f"<h2>{escape(title)}</h2>" if title else ""
    above = f'<p class="prompt">{escape(note)}</p>' if note else ""
    head = head and f"<thead><tr>{head}</tr></thead>"
    return f'{heading}<div class="card">{above}<table>{head}<tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    """A word or two stay in one line; longer text may be broken anywhere, so that no path widens the page."""
    kind = ' class="short"' if len(text) <= _SHORT else ""
    return f"<td{kind}>{escape(text)}</td>"


def number(value: float | None, shape: str = "{:.3f}") -> str:
    """A figure as it is shown; a dash where there is none."""
    return "–" if value is None or value != value else shape.format(value).replace("-", "−")
