"""Every Redis structure of the kernel: one Lua file per atomic step, one typed wrapper each."""
