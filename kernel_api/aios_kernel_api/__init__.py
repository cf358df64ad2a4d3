"""The kernel's HTTP door: whoever has a token reaches the kernel, and never sees its Redis.

The contract's structs are the only models; a syscall that comes in here goes through the same
client core as one from the SDK. `app.py` has the table of all routes.
"""
