"""What runs in the processes of tools: by any Python, so it imports nothing of the project."""
