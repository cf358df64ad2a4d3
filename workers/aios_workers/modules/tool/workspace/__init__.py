"""Files of storage in a session's folder: put there, compared, written back."""
