"""Tables from what the harness wrote. Reads files; knows no engine."""
