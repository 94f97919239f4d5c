"""Grading of programs: the code in a response is run in a sandbox against the problem's tests.

`grader` is the way in; `extraction` finds the code in a response; `sandbox` runs it, with `bubblewrap`, `seccomp` and
`pipes`; `inside` is the program that runs within the sandbox.
"""
