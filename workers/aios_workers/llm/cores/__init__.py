"""The cores: one package for each kind."""
