"""The way out of a sandbox: a proxy that lets through what rules name, and puts keys in."""
