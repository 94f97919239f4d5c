"""A report as Markdown."""

from __future__ import annotations

from lm_eval_tandem.reports.table import Cell, Figure, Missing, Part, Report, Table


def text(report: Report, figures: str | None = None) -> str:
    """The whole report; figures as links to SVG files in the folder `figures` (and to their
    numbers in `tables`), or as tables where there is none.
    """
    lines = [f"# {report.title}", ""]
    for title, facts in report.headlines:
        lines += [f"**{title}**: " + "; ".join(f"{value} {meaning}" for value, meaning in facts) + ".", ""]
    for section in report.sections:
        lines += [f"## {section.title}", "", section.intro, ""]
        for part in section.parts:
            lines += [*of_part(part, figures), ""]
    return "\n".join([*lines, "## What the runs ran on", "", *[f"- {line}" for line in report.circumstances]]) + "\n"


def of_part(part: Part, figures: str | None) -> list[str]:
    """The lines of a table, a figure or a gap."""
    if isinstance(part, Missing):
        return [f"*Missing:* {part.what}", *(["", "```", part.command, "```"] if part.command else [])]
    heading = [f"### {part.title}", ""]
    if isinstance(part, Figure):
        if figures is not None:
            link = f"[the numbers](tables/{part.data.name}.csv)"
            return [*heading, f"![{part.title}]({figures}/{part.name}.svg)", "", link]
        return heading + of_table(part.data)
    return heading + of_table(part)


def of_table(table: Table) -> list[str]:
    """Its caption and its rows."""
    lines = [table.caption, ""] if table.caption else []
    lines += ["| " + " | ".join(map(cell, table.columns)) + " |", "|---" * len(table.columns) + "|"]
    return lines + ["| " + " | ".join(map(cell, row)) + " |" for row in table.rows]


def cell(content: Cell) -> str:
    """One cell."""
    return str(content).replace("|", "\\|")
