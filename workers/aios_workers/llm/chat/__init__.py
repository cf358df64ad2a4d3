"""How a conversation becomes a prompt, and an answer its parts: templates, calls, reasoning."""
