"""BonsaiGPT: a workshop for small GPTs. The command line is ``bonsai``; the parts import by their own names."""

__version__ = "0.1.0"
