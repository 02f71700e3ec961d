"""Ways to score embeddings: one file and one YAML each."""
