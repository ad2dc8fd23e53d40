"""Programs that measure what the documentation claims, each beside its peers."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
