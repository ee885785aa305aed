"""Outlier detection by flows."""
