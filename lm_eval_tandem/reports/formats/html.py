"""A report as one HTML page that opens without a network, from the template and style sheets in `templates/`."""

from __future__ import annotations

from functools import lru_cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from lm_eval_tandem.reports.table import ENVIRONMENT_TITLE, Cell, Figure, Missing, Number, Report, Table


def render(report: Report) -> str:
    """Return the page: links to the sections, headline figures, then every figure and table."""
    template = _environment().get_template("report.html.jinja")
    return template.render(report=report, environment_title=ENVIRONMENT_TITLE).lstrip()


@lru_cache(maxsize=1)
def _environment() -> Environment:
    """Return the templates' environment: everything is escaped but the drawings, which are SVG markup of our own."""
    environment = Environment(
        loader=PackageLoader("lm_eval_tandem.reports.formats"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    environment.filters.update(link_text=link_text, row_class=row_class, text_columns=text_columns)
    environment.tests["figure"] = lambda part: isinstance(part, Figure)
    environment.tests["missing"] = lambda part: isinstance(part, Missing)
    return environment


def link_text(section_name: str) -> str:
    """Return a section's name as the row of links shows it."""
    return section_name.replace("-", " ").capitalize()


def text_columns(table: Table) -> list[bool]:
    """Return for each column whether it holds words only, which are aligned to the left."""
    if table.of_words or not table.rows:
        return [True] * len(table.columns)
    return [not any(is_numeric(cell) for cell in column) for column in zip(*table.rows, strict=True)]


def is_numeric(cell: Cell) -> bool:
    """Whether a cell is a number, or text that starts with one ("12 / 30")."""
    return isinstance(cell, Number) or cell[:1].isdigit()


def row_class(label: Cell) -> str:
    """Return the CSS class of a row: the cascade's rows are highlighted, the oracle's are muted."""
    if str(label).split(" ")[0] == "cascade":
        return "main"
    return "aside" if str(label).startswith("oracle") else ""
