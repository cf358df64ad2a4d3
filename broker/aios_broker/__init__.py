"""The broker of the kernel: what a syscall is, every queue it crosses, and who goes first."""
