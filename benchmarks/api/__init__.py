"""What the HTTP API costs: against the Redis transport, and against a proxy in its place."""
