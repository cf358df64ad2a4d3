"""Who decides which waiting syscall is next, and keeps the queues in order."""
