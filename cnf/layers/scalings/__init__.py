"""Layers whose numbers are fitted to the data, once: they bring it to a common scale."""
