"""From texts to embeddings and their spectrum."""
