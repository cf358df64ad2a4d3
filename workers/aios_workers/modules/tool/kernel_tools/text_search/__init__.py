"""A text or a pattern, found in files line by line."""
