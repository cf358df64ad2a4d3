"""The connection to Redis: addresses, the protocol, seeking the master."""
