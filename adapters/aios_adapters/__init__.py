"""Agent frameworks on the kernel, through each framework's own extension points.

Nothing is built here yet. The first adapters come with the HTTP door (`aios_kernel_api`).
"""
