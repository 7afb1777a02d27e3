"""Caches that keep less than everything: the policies of ``bonsaigpt.config.kv`` in tensors."""
