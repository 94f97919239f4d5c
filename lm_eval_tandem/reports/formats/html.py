"""A report as one HTML page that needs nothing else: no script, no font, no request to anywhere."""

from __future__ import annotations

from html import escape

from lm_eval_tandem.reports.formats import svg
from lm_eval_tandem.reports.table import Cell, Figure, Missing, Number, Part, Report, Section, Table

STYLE = """
*{box-sizing:border-box}
html{color-scheme:light dark;-webkit-text-size-adjust:100%;scroll-padding-top:3.2rem}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main,header{max-width:70rem;margin:0 auto;padding:0 1.25rem}
h1{font-size:1.75rem;line-height:1.2;margin:2rem 0 .75rem;letter-spacing:-.01em}
h2{font-size:1.25rem;line-height:1.3;margin:2.75rem 0 .4rem;padding-top:1.25rem;border-top:1px solid var(--rule)}
h3{font-size:1rem;margin:1.5rem 0 .3rem}
p{margin:.3rem 0 .8rem;max-width:46rem}
.intro,.caption,footer{color:var(--soft);font-size:.9rem}
nav{position:sticky;top:0;z-index:3;background:var(--paper);border-bottom:1px solid var(--rule)}
nav ul{display:flex;gap:.3rem 1.1rem;list-style:none;max-width:70rem;margin:0 auto;padding:.6rem 1.25rem;
overflow-x:auto;white-space:nowrap;font-size:.875rem;scrollbar-width:thin}
a{color:var(--intern);text-decoration:none}
a:hover,a:focus-visible{text-decoration:underline}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,30rem),1fr));gap:1rem;margin:1rem 0}
.card{border:1px solid var(--rule);border-radius:.6rem;padding:.9rem 1.1rem}
.card h3{margin:0 0 .5rem;font-size:.95rem}
.card dl{display:grid;grid-template-columns:repeat(auto-fill,minmax(6.5rem,1fr));gap:.7rem 1.1rem;margin:0}
.card dt{font-size:1.45rem;font-weight:650;line-height:1.2;font-variant-numeric:tabular-nums}
.card dd{margin:0;color:var(--soft);font-size:.82rem;max-width:9.5rem;line-height:1.3}
.scroll{overflow-x:auto;margin:.4rem 0 1rem;border:1px solid var(--rule);border-radius:.5rem;max-width:max-content}
table{border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums;line-height:1.3}
th,td{padding:.4rem .7rem;text-align:right;vertical-align:top;border-bottom:1px solid var(--rule)}
tr:last-child td,tr:last-child th{border-bottom:0}
thead th{vertical-align:bottom;font-weight:600;color:var(--soft);max-width:9.5rem;min-width:4.2rem}
th:first-child,td:first-child{text-align:left;position:sticky;left:0;background:var(--paper);z-index:1}
tbody th{font-weight:600;white-space:nowrap}
td.word,th.word{text-align:left}
td{white-space:nowrap}
small{display:block;color:var(--soft);font-size:.76rem}
tr.main>*{background:color-mix(in srgb,var(--cascade) 9%,var(--paper))}
tr.aside>*{color:var(--soft);font-style:italic}
figure{margin:.4rem 0 1rem;max-width:34rem}
figure svg{display:block;width:100%;height:auto}
.parts{display:flex;flex-wrap:wrap;gap:0 2.5rem;align-items:flex-start}
.part{max-width:100%;min-width:min(100%,20rem)}
.part>h3,.part>.caption{contain:inline-size}
.part.whole{width:100%}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,26rem),1fr));gap:0 2rem;align-items:start}
details{margin:.2rem 0 1rem}
summary{cursor:pointer;color:var(--intern);font-size:.9rem}
.missing{border-left:3px solid var(--rule);padding:.1rem 0 .1rem .9rem;color:var(--soft);font-size:.9rem;margin:.8rem 0}
pre{white-space:pre-wrap;overflow-wrap:anywhere;
background:color-mix(in srgb,var(--rule) 35%,var(--paper));padding:.6rem .8rem;border-radius:.4rem;
font-size:.8rem;line-height:1.45;color:var(--ink)}
footer{max-width:70rem;margin:0 auto;padding:1rem 1.25rem 3rem}
footer ul{padding-left:1.1rem}
@media (max-width:40rem){h1{font-size:1.4rem}main,header,footer{padding-left:1rem;padding-right:1rem}
nav ul{padding:.6rem 1rem}
th,td{padding:.35rem .5rem}tbody th{white-space:normal;overflow-wrap:anywhere;min-width:6.8rem;max-width:8.5rem}}
@media print{nav{display:none}.scroll{overflow:visible}}
"""


def text(report: Report) -> str:
    """The page."""
    links = "".join(f'<li><a href="#{section.name}">{escape(short(section))}</a></li>' for section in report.sections)
    cards = "".join(card(title, facts) for title, facts in report.headlines)
    body = "".join(of_section(section) for section in report.sections)
    said = "".join(f"<li>{escape(line)}</li>" for line in report.circumstances)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(report.title)}</title>\n<style>{svg.style()}{STYLE}</style></head>\n<body>"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav>\n<header><h1>{escape(report.title)}</h1>'
        f'<div class="cards">{cards}</div></header>\n<main>{body}</main>\n'
        f"<footer><h2>What the runs ran on</h2><ul>{said}</ul></footer></body></html>\n"
    )


def short(section: Section) -> str:
    """A section's name for the row of links."""
    return section.name.replace("-", " ").capitalize()


def card(title: str, facts: tuple[tuple[str, str], ...]) -> str:
    """What came out of one study, in a few figures."""
    items = "".join(f"<div><dt>{escape(value)}</dt><dd>{escape(meaning)}</dd></div>" for value, meaning in facts)
    return f'<section class="card"><h3>{escape(title)}</h3><dl>{items}</dl></section>'


def of_section(section: Section) -> str:
    """A heading, what it is about, and its parts; figures stand side by side where there is room."""
    figures = [part for part in section.parts if isinstance(part, Figure)]
    others = [part for part in section.parts if not isinstance(part, Figure)]
    drawn = f'<div class="grid">{"".join(map(of_figure, figures))}</div>' if figures else ""
    intro = f'<p class="intro">{escape(section.intro)}</p>' if section.intro else ""
    return (
        f'<section id="{section.name}"><h2>{escape(section.title)}</h2>{intro}'
        f'{drawn}<div class="parts">{"".join(map(of_part, others))}</div></section>\n'
    )


def of_part(part: Part) -> str:
    """A table with its heading, or a gap."""
    if isinstance(part, Missing):
        command = f"<pre><code>{escape(part.command)}</code></pre>" if part.command else ""
        return f'<div class="part whole missing"><p><strong>Missing.</strong> {escape(part.what)}</p>{command}</div>'
    assert isinstance(part, Table)
    caption = f'<p class="caption">{escape(part.caption)}</p>' if part.caption else ""
    if part.folded:
        inside = f"<summary>{escape(part.title)}</summary>{caption}{of_table(part)}"
        return f'<details class="part whole">{inside}</details>'
    return f'<div class="part"><h3>{escape(part.title)}</h3>{caption}{of_table(part)}</div>'


def of_figure(figure: Figure) -> str:
    """A drawing, and its numbers below on demand."""
    return (
        f'<div id="{figure.name}"><h3>{escape(figure.title)}</h3><figure>{figure.svg}</figure>'
        f"<details><summary>The numbers</summary>{of_table(figure.data)}</details></div>"
    )


def of_table(table: Table) -> str:
    """The table in a frame that scrolls sideways where the screen is narrow."""
    words = [not any(is_figure(one) for one in column) for column in zip(*table.rows, strict=True)]
    words = words or [True] * len(table.columns)
    head = "".join(
        f"<th scope=col{' class=word' if word else ''}>{escape(column)}</th>"
        for column, word in zip(table.columns, words, strict=True)
    )
    rows = []
    for row in table.rows:
        cells = [f'<th scope="row">{escape(str(row[0]))}</th>']
        cells += [f"<td{' class=word' if words[i] else ''}>{cell(row[i])}</td>" for i in range(1, len(row))]
        rows.append(f"<tr{kind(str(row[0]))}>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(table.title, quote=True)}"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def is_figure(content: Cell) -> bool:
    """Whether a cell stands in a column of figures."""
    return isinstance(content, Number) or content[:1].isdigit()


def kind(label: str) -> str:
    """The cascade's rows stand out; the oracle's stand back."""
    if label.split(" ")[0] == "cascade":
        return " class=main"
    return " class=aside" if label.startswith("oracle") else ""


def cell(content: Cell) -> str:
    """A figure with its interval small below it, or words."""
    if not isinstance(content, Number):
        return escape(content)
    return escape(content.text) + (f"<small>{escape(content.range)}</small>" if content.interval else "")
