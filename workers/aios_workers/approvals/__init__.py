"""Approvals: syscalls that wait for a person."""
