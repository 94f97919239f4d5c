"""Reports of runs: the paper's tables and figures, made from the files that the harness and the ledger left.

`sources/` reads those files, `sections/` turns what they hold into tables and figures, `formats/` writes these as
Markdown, HTML, LaTeX, CSV and SVG, and `report.py` puts them together. No model is loaded. Start at `report.SECTIONS`.
"""
