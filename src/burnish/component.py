"""What the author of a component imports: kinds, and a server for them that registers itself."""
