"""Multiple-instance learning: from the embeddings of a bag's tiles to one prediction for the bag."""
