"""What runs in a session's sandbox; the standard library alone."""
