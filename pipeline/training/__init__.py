"""From sequences and spectrum to trained weights and ranks. Every module here decides numbers."""
