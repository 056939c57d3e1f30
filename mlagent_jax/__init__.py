"""A JAX stack that trains a language model to do machine-learning engineering; see README.md."""

import os

from environments.installed import check_installed

# transformers advises PyTorch whenever it is imported without; its tokenizers and configurations need none.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

check_installed(("absl", "etils", "numpy"), ".[cpu]")
