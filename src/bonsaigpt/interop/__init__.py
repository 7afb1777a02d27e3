"""Models of other programs, read without those programs."""

from bonsaigpt.interop.huggingface import is_model_folder, read_folder

__all__ = ["is_model_folder", "read_folder"]
