"""From safetensors on disk to tensors: headers, plans and reads know nothing of torch; `tensors` and `loading` alone do."""
