"""The A2A door: an agent of the kernel as an agent of the Agent2Agent protocol, version 1.0."""
