"""What happened to every syscall, in Postgres; and snapshots that Redis has no room for."""
