"""The code of the tools that come with the kernel. It runs where all tools run, in their processes.

A folder is a tool, with a `tool.toml` as anybody's. Nothing of the kernel is imported here.
"""
