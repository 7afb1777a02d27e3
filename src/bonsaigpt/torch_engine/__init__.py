"""The PyTorch engine. ``import torch`` happens here and above, never below."""
