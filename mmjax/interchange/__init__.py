"""Imports and exports models between Hugging Face directories (config.json, safetensors) and mmjax's parts."""
