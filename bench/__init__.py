"""What things cost here: one file per question, JSON lines, never timed tests. See README.md."""
