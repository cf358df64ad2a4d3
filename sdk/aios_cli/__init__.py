"""The command line, `aios`: one file per group of commands."""
