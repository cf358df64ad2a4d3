"""The way out of a sandbox: a proxy that lets through what a tool's rules name, and puts keys in."""
