"""`hf://owner/model[:revision][/subpath]`: model repositories of the Hugging Face Hub and of its mirrors.

Both planes are `modelcache.transport`'s, without huggingface_hub. Why: `docs/design/003-hub-control-plane.md`.

Not served: datasets, spaces, buckets, and Xet's own protocol (files kept in Xet come as plain bytes through its bridge).
"""

from modelcache.sources.huggingface.options import HubOptions
from modelcache.sources.huggingface.source import HubSource

__all__ = ["HubOptions", "HubSource"]
