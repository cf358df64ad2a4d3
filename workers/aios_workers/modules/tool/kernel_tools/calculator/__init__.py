"""A calculator: numbers exactly, symbols by SymPy."""
