"""The memory module."""
