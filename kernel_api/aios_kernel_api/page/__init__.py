"""The page for people: HTML that the server makes, kept up to date while it is in view."""
