"""The llm module: cores that generate, and the handler that time-slices them."""
