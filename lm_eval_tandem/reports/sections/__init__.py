"""The sections of a report, one module per topic; `report.SECTIONS` lists them in order.

A section is a function that takes the `ReportData` and returns its parts: tables, figures, and for what the runs lack a
`Missing` with the command that would make it. `report.py` says how to add one; `cells` has what several tables share.
"""
