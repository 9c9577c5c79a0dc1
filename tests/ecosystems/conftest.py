"""These tests need packages of their own: only `make test-ecosystems`, which installs them, collects them."""

import os

collect_ignore_glob = [] if os.environ.get("DEFORM_ATTN_ECOSYSTEMS") else ["test_*.py"]
