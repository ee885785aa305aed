"""Shapes, angles, files, row noise and processes: knows nothing of ODEs or flows."""
