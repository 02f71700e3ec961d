"""Public sets of labelled tiles, fetched into the layout that their tasks expect."""
