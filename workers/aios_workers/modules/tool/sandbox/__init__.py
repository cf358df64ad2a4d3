"""What keeps the processes of tools in: namespaces, a filter of system calls, and what they see."""
