"""The programs: train, evaluate, sample, log-prob, plot. Each parses, calls and prints."""
