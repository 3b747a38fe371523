"""A run's policy as files that other engines read."""
