"""Text and toys to tokens on disk to ``batch_at(step)``. NumPy only: both engines read the same bytes."""
