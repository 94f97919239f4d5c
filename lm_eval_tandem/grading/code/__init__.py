"""Grading of programs: the code in a response is run in a sandbox against the problem's tests.

`grader` is the way in; `extraction` finds the code in a response, with `fences` and `statements`; `sandbox` runs it,
with `bubblewrap`, `seccomp`, `pipes` and `watch`; `inside` is the program that runs within the sandbox.
"""
