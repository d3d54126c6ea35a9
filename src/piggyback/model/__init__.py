"""What a user holds: one network, many tasks."""
