"""Traces of programs for OpenTelemetry, made of the ledger: no other process knows of them."""
