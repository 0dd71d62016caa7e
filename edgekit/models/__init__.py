"""How a PyTorch model becomes a dynamic network."""
