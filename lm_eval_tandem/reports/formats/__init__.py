"""Writers of a report, one module per format, and `svg`, which draws the figures. They know `table.py` only."""
