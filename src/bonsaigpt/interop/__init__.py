"""Models of other programs: folders of Hugging Face format, read without that library."""

from bonsaigpt.interop.huggingface import is_gpt2_folder, read_gpt2

__all__ = ["is_gpt2_folder", "read_gpt2"]
