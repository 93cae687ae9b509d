"""What everything else builds on: errors, names and typed sections of parameters. Imports neither torch nor the project."""
