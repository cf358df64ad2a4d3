"""Who may do what, what people decide, what of it is written down: for workers and doors."""
