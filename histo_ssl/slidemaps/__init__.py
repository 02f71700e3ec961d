"""What is known of a slide's tiles, drawn over the slide and written for other programs."""
