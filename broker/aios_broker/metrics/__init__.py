"""Prometheus metrics: of each process by itself, and of the kernel as Redis shows it."""
