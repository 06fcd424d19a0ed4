"""The graph: gs.Graph in and out, sessions, shapes, traversal, regions."""
