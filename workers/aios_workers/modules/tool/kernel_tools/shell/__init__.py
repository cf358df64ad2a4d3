"""A command, run once by a shell."""
