"""What is written to disk: whole or not at all, known by what it was made of, safe to be read by anyone."""
