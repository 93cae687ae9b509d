"""Turns item texts into embeddings, and embeddings into their spectrum."""
