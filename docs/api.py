"""Write the API reference, a page per module from its docstrings: python docs/api.py FOLDER

Any warning ends it, such as an annotation that names nothing.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc

import recbole_edt

# pdoc cannot see the module of a NamedTuple's annotations, nor names that a function imports for itself.
NOT_SEEN = r"Error parsing type annotation (ForwardRef\(|list\[tuple\[AsyncLimiter)"


def main(folder: Path) -> None:
    names = [module.name for module in pkgutil.walk_packages(recbole_edt.__path__, "recbole_edt.")]
    for name in names:
        importlib.import_module(name)  # here, since pdoc forbids programs that libraries start while it imports
    pdoc.render.configure(docformat="google")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", NOT_SEEN)
        pdoc.pdoc("recbole_edt", *names, output_directory=folder)
    print(f"{len(names) + 1} pages: {folder / 'index.html'}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
