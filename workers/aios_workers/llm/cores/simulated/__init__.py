"""The simulated core: tokens from a seeded function, speed and memory modelled."""
