"""How a report is written: Markdown, LaTeX, HTML, CSV, SVG."""
