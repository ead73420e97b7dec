"""Entry of the tokenisation benchmark (tokenisation.py); it shares its name with a module of the standard library.

So it makes way: as a script it moves this folder to the end of the path, and to another script of this folder that gets
it for the standard library's `tokenize` it gives that one.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

if __name__ == "tokenize":
    here = os.path.dirname(os.path.realpath(__file__))
    spec = PathFinder.find_spec("tokenize", [path for path in sys.path if os.path.realpath(path) != here])
    assert spec is not None
    assert spec.loader is not None
    sys.modules["tokenize"] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules["tokenize"])

if __name__ == "__main__":
    sys.path.append(sys.path.pop(0))
    from tokenisation import main

    main()
