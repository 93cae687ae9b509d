"""From raw files to sequences: sources and preprocessing."""
