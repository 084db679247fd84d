"""The project's own claims, reviews, pairs and questions, as CSV; `tl_steer.prompts` reads them.

`recorded_example.json` is made up; `tl_steer.evaluation.read_recorded` reads it.
"""
