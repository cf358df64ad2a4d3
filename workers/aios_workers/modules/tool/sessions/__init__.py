"""Exec sessions: interpreters that live as long as their agent needs them."""
