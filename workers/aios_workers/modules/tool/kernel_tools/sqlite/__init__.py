"""One query of an SQLite database or a CSV file, read only."""
