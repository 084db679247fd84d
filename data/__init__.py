"""The project's own claims, reviews, pairs and questions, as CSV; `tl_steer.prompts` reads them."""
