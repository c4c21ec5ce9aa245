"""A report as HTML that opens without a connection, and as Markdown; both from the same blocks."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from matplotlib.figure import Figure

from raremask.runfolder import write_bytes, write_text

STYLE = """
:root { color-scheme: light; --ink: #1d2433; --faint: #66708a; --line: #d9deea; --note: #fff6e0; --accent: #2b5c9e; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 80rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink); }
h1 { font-size: 1.5rem; margin: .3rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .4rem; color: var(--accent); }
.lead { font-size: 1.12rem; border-left: 4px solid var(--accent); padding: .3rem .9rem; }
.note { background: var(--note); border: 1px solid #e8d3a0; border-radius: 6px; padding: .5rem .9rem; margin: .8rem 0; }
.note ul { margin: .2rem 0; padding-left: 1.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; margin: .5rem 0; }
th, td { padding: .28rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } th { color: var(--faint); font-weight: 600; }
td b { color: var(--accent); } td small { display: block; color: var(--faint); }
figure { margin: .8rem 0; } figure img { max-width: 100%; height: auto; display: block; }
figcaption, footer { color: var(--faint); font-size: .86rem; }
@media (max-width: 40rem) { body { padding: .7rem; font-size: 15px; } figure { overflow-x: auto; }
  figure img { max-width: none; width: 38rem; } }
@media print { body { max-width: none; font-size: 10pt; } h2, figure, table { break-inside: avoid; }
  .wide { overflow: visible; } table { font-size: 7.5pt; } th, td { white-space: normal; } }
"""


@dataclass(frozen=True)
class Paragraph:
    """Some sentences; `lead` are those that matter most."""

    text: str
    lead: bool = False


@dataclass(frozen=True)
class Notes:
    """A list that asks for attention."""

    title: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Grid:
    """A table; the first column names the rows. A cell may have several lines."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Plot:
    """A figure under a name, with what is to be seen in it."""

    name: str
    figure: Figure
    caption: str
    dpi: int = 130

    @cached_property
    def png(self) -> bytes:
        """The figure's file; it is drawn once, for both pages."""
        buffer = io.BytesIO()
        self.figure.savefig(buffer, format="png", dpi=self.dpi)
        return buffer.getvalue()


@dataclass(frozen=True)
class Section:
    """Blocks under a heading."""

    heading: str
    blocks: Sequence[Paragraph | Notes | Grid | Plot] = field(default_factory=list)


def write(folder: Path, title: str, sections: Sequence[Section], footer: str) -> None:
    """Write `index.html`, all in one file, and `report.md` with its pictures in `figures/`.

    Args:
        folder: Where; files of an older report are written over.
        title: Stands over everything.
        sections: From top to bottom; a section without blocks is left out.
        footer: Stands below everything.
    """
    page, text = [], [f"# {_plain(title)}", ""]
    for section in (section for section in sections if section.blocks):
        if section.heading:
            page.append(f"<h2>{html.escape(section.heading)}</h2>")
            text += [f"## {_plain(section.heading)}", ""]
        for block in section.blocks:
            if isinstance(block, Plot):
                write_bytes(folder / "figures" / f"{block.name}.png", block.png)
            page.append(_html(block))
            text += [_markdown(block), ""]
    text += [_plain(footer), ""]
    write_text(folder / "report.md", "\n".join(text))
    write_text(
        folder / "index.html",
        f"<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<meta name='viewport' content='width=device-width, initial-scale=1'><title>{html.escape(title)}</title>"
        f"<style>{STYLE}</style></head>\n<body><h1>{html.escape(title)}</h1>\n"
        + "\n".join(page)
        + f"\n<footer><p>{html.escape(footer)}</p></footer></body></html>\n",
    )


def _html(block: Paragraph | Notes | Grid | Plot) -> str:
    say = html.escape
    if isinstance(block, Paragraph):
        return f"<p{' class=lead' if block.lead else ''}>{say(block.text)}</p>"
    if isinstance(block, Notes):
        lines = "".join(f"<li>{say(line)}</li>" for line in block.lines)
        return f"<div class=note><b>{say(block.title)}</b><ul>{lines}</ul></div>"
    if isinstance(block, Grid):
        head = "".join(f"<th>{say(column)}</th>" for column in block.columns)
        body = "".join("<tr>" + "".join(f"<td>{_lines(cell)}</td>" for cell in row) + "</tr>" for row in block.rows)
        return f"<div class=wide><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    data = base64.b64encode(block.png).decode()
    return (
        f"<figure><img alt='{say(block.caption, quote=True)}' src='data:image/png;base64,{data}'>"
        f"<figcaption>{say(block.caption)}</figcaption></figure>"
    )


def _lines(cell: str) -> str:
    """What stands below the first line of a cell is small print."""
    first, *more = html.escape(cell).split("\n")
    return "".join([first, *(f"<small>{line}</small>" for line in more)])


def _markdown(block: Paragraph | Notes | Grid | Plot) -> str:
    if isinstance(block, Paragraph):
        return f"**{_plain(block.text)}**" if block.lead else _plain(block.text)
    if isinstance(block, Notes):
        return "\n".join([f"**{_plain(block.title)}**", "", *(f"- {_plain(line)}" for line in block.lines)])
    if isinstance(block, Grid):
        rows = [block.columns, ["---", *["---:"] * (len(block.columns) - 1)], *block.rows]
        return "\n".join("| " + " | ".join(_plain(cell).replace("|", "\\|") for cell in row) + " |" for row in rows)
    return f"![{_plain(block.caption)}](figures/{block.name}.png)\n\n*{_plain(block.caption)}*"


def _plain(text: str) -> str:
    """Names may hold anything: no HTML, and no line ends, may come of them."""
    return html.escape(text, quote=False).replace("\n", " ")
