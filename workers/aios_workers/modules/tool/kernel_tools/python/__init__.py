"""Python code, run once."""
