"""Real servers out of Python packages: Valkey and Postgres on private sockets, no installation.

Used by `aios up`, `aios demo` and the tests when no address of a server is given.
"""
