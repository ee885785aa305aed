"""Layers of single columns, one for each kind of column, and their concatenation."""
