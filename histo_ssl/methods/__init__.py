"""Ways to pretrain: one file and one YAML each."""
