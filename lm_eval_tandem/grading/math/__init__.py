"""Grading of the final answers of mathematics problems.

`grader` is the way in; `answer` finds the answer in a response; `normalise`, with the LaTeX parser in `latex`, is the
second grader besides Math-Verify; `pool` and `worker` run both graders in processes that can be killed.
"""
