"""What Python imports first in the programs that tests start: torch, which tests compare with, is not there for them.

No installation of a user has it (`setup.py` names it for tests alone), and Transformers and tensorboardX import it
wherever they find it, which takes as long as all else that a trainer imports.
"""

import sys
from importlib.machinery import PathFinder


class WithoutTorch(PathFinder):
    """The finder of modules on `sys.path`."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name == "torch" else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutTorch
