"""Agents' memory blocks in Redis: the RAM of the memory module, over Postgres as its disk."""
