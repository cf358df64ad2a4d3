"""The workers: one loop that every module runs, and the modules."""
