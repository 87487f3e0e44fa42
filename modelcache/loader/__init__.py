"""From safetensors on disk to tensors: headers, plans, files and the reader know nothing of torch; what lands bytes on devices does."""
