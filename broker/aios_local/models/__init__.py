"""Model files: fetched from a hub or an address, kept with their checksums."""
