"""Programs that measure what the documentation claims, each beside its peers.

docs/measured.md describes what each of them measures.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
