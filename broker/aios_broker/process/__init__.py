"""Programs of other packages: where they are, and runs of them that never outlive their parent."""
