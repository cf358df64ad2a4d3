"""The access module."""
