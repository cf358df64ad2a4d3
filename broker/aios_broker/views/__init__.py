"""What people see of a kernel, read and put into words once: for the command line and for HTTP."""
