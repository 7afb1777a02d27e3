"""The JAX engine: plain pytrees and pure functions, file for file beside ``torch_engine``."""
