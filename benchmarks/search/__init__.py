"""What search finds, and how fast: see __main__."""
