"""Layers of single columns, a kind of column each, and their concatenation."""
