"""The wire: what agents, scheduler and workers say to each other. Pure: stdlib and msgspec only."""
