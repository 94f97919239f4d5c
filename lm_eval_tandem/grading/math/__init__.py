"""Grading of the final answers of mathematics problems.

`grader` is the way in. `answer` and `statement` find the answer in a response. `rules` has the order of the rules by
which it is compared, for both graders: `spelling`, `quantity` and `shape` read it, and `library` (Math-Verify, the
reported score) or `normalise` (with the parser in `latex`) compare the mathematics. `pool` and `worker` run both in
processes that can be killed.
"""
