"""Parameter groups, schedules and moving averages."""
