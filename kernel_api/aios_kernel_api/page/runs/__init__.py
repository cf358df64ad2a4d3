"""What programs did and do: each one's syscalls, and the slots in time."""
