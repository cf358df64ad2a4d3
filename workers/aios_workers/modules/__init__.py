"""The modules that keep state: memory, storage, access, tool; one room each."""
