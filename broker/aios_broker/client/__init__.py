"""The one client of the kernel: what was submitted, what became of it, and every way back to it.

The SDK, the command line and the workers' own calls stand on `session.Session`. All but
`redis_transport` is free of Redis: another transport is another implementation of
`transport.Transport`.
"""
