"""Additions of one file each, as a user would make them, for `tests/test_additions.py`."""
