"""Grading of code: in a sandbox, against tests."""
