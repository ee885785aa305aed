"""The measurements that `benchmark` prints: a module for each table."""
