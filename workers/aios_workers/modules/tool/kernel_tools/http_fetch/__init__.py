"""One page of the web, where a rule leads there."""
