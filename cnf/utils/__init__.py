"""Shapes, angles, files, row noise and processes, independent of ODEs and flows."""
