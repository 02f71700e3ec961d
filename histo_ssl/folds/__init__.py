"""Who learns, who is asked meanwhile, and who tests: divisions of slides that share no patient."""
