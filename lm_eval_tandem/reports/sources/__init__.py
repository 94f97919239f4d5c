"""What a report is made from: the harness's result and sample files and the ledgers, joined question by question.

`harness_files` and `ledgers` read files, `reading` joins them into one `Run` per policy and domain, `grouping` puts
runs that are compared into a `Comparison`, and `report_data` holds everything that a section may use. Of models other
than tandem's, `other_models` and `answer_tokens` know the cost, `question_settings` how they were asked, and `joining`
which questions they have in common with the others.
"""
