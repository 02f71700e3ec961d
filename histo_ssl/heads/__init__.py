"""What the heads of a ViT attend to: their maps of tiles and of large regions, and pictures of them."""
