"""The programs of the toolkit."""
