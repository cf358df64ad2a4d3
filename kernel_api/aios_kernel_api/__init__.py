"""The kernel's HTTP door: typed REST for every syscall, `/v1` for OpenAI clients, approvals.

Nothing is built here yet. Agents reach the kernel through `aios_sdk` and Redis.
"""
