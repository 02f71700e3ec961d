"""Self-supervised vision models for histopathology, from whole-slide images to tables and figures."""
