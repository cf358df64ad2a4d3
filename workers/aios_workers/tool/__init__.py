"""The tool module."""
