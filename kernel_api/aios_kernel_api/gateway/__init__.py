"""The doors for clients of other APIs: OpenAI's and Anthropic's requests become syscalls."""
