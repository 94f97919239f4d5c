"""Results as leaderboards take them: `lm-eval-tandem submit FORMAT RESULTS… --output FOLDER`.

A format writes files into a folder and returns the steps by which its user hands them in; nothing is ever uploaded. To
add one:

1. Write a module in this folder with three things. `HELP` is one line for the command's help. `add_options(parser)`
   declares the options that are this format's own; RESULTS and --output every format has. `export(given)` takes what
   was typed, writes the files and returns the lines to print: the files, what is doubtful about them, and the exact
   command or the steps of the pull request.
2. Add the module's name to `FORMATS`.

The command line imports every format's module for its options, so what reads results is imported inside `export`.
`sources.read` returns runs whose ledgers were checked against their samples. `redaction` keeps paths, names and keys
of the machine out of what is written.
"""

from __future__ import annotations

FORMATS: tuple[str, ...] = ("every_eval_ever", "hub", "router_arena")
"""The formats of `lm-eval-tandem submit`: modules of this folder, in the order of the help."""
