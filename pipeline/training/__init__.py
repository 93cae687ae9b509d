"""Training: from sequences and spectrum to weights and ranks. Every module here decides the numbers of a run."""
