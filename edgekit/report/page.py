"""A page in one file: HTML and CSS with nothing to load, no script, light and dark.

What stands on it is data, `Section`s of `Part`s, so that who has something to say writes no HTML.
All text is escaped here; figures alone come as markup, of `edgekit.report.plots`.
"""

import base64
import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from urllib.parse import quote

__all__ = [
    "CSS",
    "Code",
    "Figure",
    "Gallery",
    "Links",
    "Numbers",
    "Part",
    "Picture",
    "Section",
    "Table",
    "Text",
    "render",
]


@dataclass(frozen=True)
class Text:
    """A paragraph. `warns` says that it changes how the rest is to be read."""

    text: str
    warns: bool = False


@dataclass(frozen=True)
class Numbers:
    """The few numbers that matter: each its value, what it is, and a remark."""

    items: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Table:
    """Rows of text under columns; those named in `words` hold words, the others numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    words: frozenset[int] = frozenset({0})


@dataclass(frozen=True)
class Figure:
    """A picture of numbers, as SVG; `says` is what it shows, for who does not see it.

    `tables` hold the same numbers, folded; none where a table beside the figure does.
    """

    title: str
    svg: str
    says: str
    tables: tuple[Table, ...]


@dataclass(frozen=True)
class Picture:
    """A small image, PNG, with a line under it."""

    png: bytes
    says: str
    line: str


@dataclass(frozen=True)
class Gallery:
    """Images in a row."""

    title: str
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Links:
    """Other files beside the page: each its name, where it lies, and a remark."""

    title: str
    items: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Code:
    """Text to be copied as it is; `folded` where few will want it."""

    title: str
    text: str
    folded: bool = False


Part = Text | Numbers | Table | Figure | Gallery | Links | Code


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading and a place in the table of contents."""

    title: str
    parts: tuple[Part, ...] = field(default=())


def render(
    title: str,
    subtitle: str,
    sections: Sequence[Section],
    meta: dict[str, str] | None = None,
    closing: str = "",
) -> str:
    """The page. `meta` goes into its head, `closing` under it. Same arguments, same text."""
    metas = "".join(
        f'<meta name="{_quoted(name)}" content="{_quoted(value)}">\n'
        for name, value in (meta or {}).items()
    )
    contents = "".join(
        f'<li><a href="#s{number}">{_text(one.title)}</a></li>'
        for number, one in enumerate(sections)
    )
    body = "".join(_section(f"s{number}", one) for number, one in enumerate(sections))
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        # Nothing is loaded, and should a name hold markup after all, nothing of it runs.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"{metas}<title>{_text(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n"
        f"<header><h1>{_text(title)}</h1><p>{_text(subtitle)}</p></header>\n"
        f'<nav aria-label="Contents"><ol>{contents}</ol></nav>\n<main>\n{body}</main>\n'
        f"<footer><p>{_text(closing)}</p></footer>\n</body>\n</html>\n"
    )


def _section(place: str, section: Section) -> str:
    parts = "".join(_grouped(section.parts))
    return (
        f'<section aria-labelledby="{place}"><h2 id="{place}">{_text(section.title)}</h2>\n'
        f"{parts}</section>\n"
    )


def _grouped(parts: Sequence[Part]) -> Iterator[str]:
    """The parts in order; figures that follow one another stand side by side if there is room."""
    for figures, some in groupby(parts, lambda one: isinstance(one, Figure)):
        inside = "".join(_part(one) for one in some)
        yield f'<div class="figures">{inside}</div>\n' if figures else inside


def _part(part: Part) -> str:
    match part:
        case Text():
            kind = ' class="warns"' if part.warns else ""
            return f"<p{kind}>{_text(part.text)}</p>\n"
        case Numbers():
            items = "".join(
                f"<div><dt>{_text(what)}</dt><dd><b>{_text(value)}</b> "
                f"<small>{_text(remark)}</small></dd></div>"
                for value, what, remark in part.items
            )
            return f'<dl class="numbers">{items}</dl>\n'
        case Table():
            return f"<h3>{_text(part.title)}</h3>\n{_table(part)}"
        case Figure():
            tables = "".join(_table(one, one.title) for one in part.tables)
            if tables:
                tables = f"<details><summary>The numbers</summary>{tables}</details>"
            return (
                f"<figure><figcaption>{_text(part.title)}</figcaption>"
                f'<div role="img" aria-label="{_quoted(part.says)}">{part.svg}</div>'
                f"{tables}</figure>\n"
            )
        case Gallery():
            pictures = "".join(
                f'<li><img src="data:image/png;base64,{base64.b64encode(one.png).decode()}" '
                f'alt="{_quoted(one.says)}"><span>{_text(one.line)}</span></li>'
                for one in part.pictures
            )
            return f'<h3>{_text(part.title)}</h3>\n<ul class="gallery">{pictures}</ul>\n'
        case Links():
            items = "".join(
                f'<li><a href="{_quoted(quote(place))}">{_text(name)}</a> {_text(remark)}</li>'
                for name, place, remark in part.items
            )
            return f"<h3>{_text(part.title)}</h3>\n<ul>{items}</ul>\n"
        case Code():
            # Told apart by the keyboard as well: what scrolls must be able to have the focus.
            text = f'<pre tabindex="0">{_text(part.text)}</pre>\n'
            if part.folded:
                return f"<details><summary>{_text(part.title)}</summary>{text}</details>\n"
            return f"<h3>{_text(part.title)}</h3>\n{text}"


def _table(table: Table, caption: str = "") -> str:
    kinds = ["w" if place in table.words else "n" for place in range(len(table.columns))]
    head = "".join(
        f'<th scope="col" class="{kind}">{_text(name)}</th>'
        for kind, name in zip(kinds, table.columns, strict=True)
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f'<th scope="row" class="{kind}">{_text(cell)}</th>'
            if place == 0
            else f'<td class="{kind}">{_text(cell)}</td>'
            for place, (kind, cell) in enumerate(zip(kinds, row, strict=True))
        )
        + "</tr>\n"
        for row in table.rows
    )
    titled = f"<caption>{_text(caption)}</caption>" if caption else ""
    return (
        f'<div class="table" tabindex="0" role="region" aria-label="{_quoted(table.title)}">'
        f"<table>{titled}<thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>\n"
    )


def _text(text: str) -> str:
    return html.escape(text, quote=False)


def _quoted(text: str) -> str:
    return html.escape(text, quote=True)


CSS = """
:root{color-scheme:light dark;
--paper:#fff;--ink:#1a1f25;--soft:#56606b;--line:#d4dae1;--panel:#f4f6f8;--link:#00588f;
--warn:#7a3b00;--warned:#fff3e2;--s0:#0072b2;--s1:#d55e00;--s2:#00805d;--s3:#a2478a}
@media(prefers-color-scheme:dark){:root{
--paper:#14181d;--ink:#e7ebef;--soft:#a3aebb;--line:#36404b;--panel:#1d232a;--link:#7cc4f5;
--warn:#ffc98f;--warned:#38260f;--s0:#56b4e9;--s1:#ff9a52;--s2:#35c79b;--s3:#e19aca}}
@media print{:root{
--paper:#fff;--ink:#000;--soft:#444;--line:#ccc;--panel:#fff;--link:#000;
--warn:#000;--warned:#fff;--s0:#0072b2;--s1:#d55e00;--s2:#00805d;--s3:#a2478a}
nav{display:none}
details::details-content{content-visibility:visible;block-size:auto}
figure,tr,.gallery li{break-inside:avoid}h2,h3{break-after:avoid}
.table,pre{overflow:visible!important}pre{white-space:pre-wrap}}
*{box-sizing:border-box}
body{margin:0 auto;padding:1rem;max-width:62rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif;
overflow-wrap:anywhere;-webkit-text-size-adjust:100%}
h1{font-size:1.7rem;line-height:1.2;margin:.5rem 0 .25rem}
h2{font-size:1.3rem;margin:2.5rem 0 .75rem;padding-top:.6rem;border-top:1px solid var(--line)}
h3,figcaption,summary{font-size:1rem;font-weight:600}h3{margin:1.25rem 0 .4rem}
header p,footer{color:var(--soft);margin:0}p{margin:.5rem 0;max-width:46rem}
footer{margin-top:2.5rem;border-top:1px solid var(--line);font-size:.9rem}
a{color:var(--link)}
nav ol{display:flex;flex-wrap:wrap;gap:.15rem 1.1rem;margin:1rem 0;padding:0;list-style:none}
nav a{display:inline-block;padding:.2rem 0}
.warns{background:var(--warned);color:var(--warn);border-left:4px solid currentColor;
padding:.5rem .75rem}
.numbers{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,9.5rem),1fr));
gap:.6rem;margin:1rem 0}
.numbers div{background:var(--panel);border:1px solid var(--line);border-radius:.4rem;
padding:.5rem .7rem}
.numbers dt{color:var(--soft);font-size:.85rem}.numbers dd{margin:0}
.numbers b{display:block;font-size:1.45rem;line-height:1.25;font-variant-numeric:tabular-nums}
.numbers small{color:var(--soft);font-size:.85rem}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));
gap:1rem 1.5rem;margin:1rem 0;align-items:start}
figure{margin:0;min-width:0;max-width:27rem}
figure>div{margin:.3rem 0}
figure svg{display:block;width:100%;height:auto}
figure svg text{font-family:inherit!important}
details{margin:.3rem 0}summary{cursor:pointer;padding:.2rem 0;font-weight:400;color:var(--link)}
.table{overflow-x:auto;margin:.3rem 0 .8rem;overflow-wrap:normal}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{text-align:left;font-weight:600;padding:.4rem 0 .2rem}
th,td{padding:.25rem .9rem .25rem 0;text-align:left;vertical-align:top;white-space:nowrap}
th.n,td.n{text-align:right}
thead th{color:var(--soft);font-weight:600;border-bottom:1px solid var(--line)}
tbody th{font-weight:400}tbody tr+tr>*{border-top:1px solid var(--line)}
pre{overflow-x:auto;background:var(--panel);border:1px solid var(--line);border-radius:.4rem;
padding:.6rem .75rem;font-size:.85rem;overflow-wrap:normal}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(6.2rem,1fr));gap:.7rem;
margin:.4rem 0;padding:0;list-style:none}
.gallery img{display:block;width:100%;max-width:7rem;height:auto;image-rendering:pixelated;
border:1px solid var(--line);background:#fff}
.gallery span{display:block;font-size:.8rem;line-height:1.3;margin-top:.2rem}
"""
