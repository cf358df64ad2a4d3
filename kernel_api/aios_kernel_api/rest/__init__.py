"""The kernel's own routes: typed REST for syscalls, lists, files, and streams of events."""
