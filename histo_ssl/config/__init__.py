"""What a run asks for: its values checked, and the folder that each part of it belongs in."""
