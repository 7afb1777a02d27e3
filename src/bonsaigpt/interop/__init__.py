"""Models of other programs, read without those programs."""

from bonsaigpt.interop.hub import is_hub_name
from bonsaigpt.interop.huggingface import is_model_folder, read_folder
from bonsaigpt.interop.karpathy import is_torch_file, read_torch_model, tokenizer_beside

__all__ = ["is_hub_name", "is_model_folder", "is_torch_file", "read_folder", "read_torch_model", "tokenizer_beside"]
