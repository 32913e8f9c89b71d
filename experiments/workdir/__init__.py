"""What a run leaves behind: one reader and one writer of each file."""
