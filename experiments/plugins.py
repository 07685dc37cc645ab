"""Arms of a user's own: Python files that register them."""

import importlib
import sys
from pathlib import Path

from pipelines.shared.errors import UserError


def load(file: Path) -> None:
    """Import a Python file as the module of its name.

    Its folder is put on the module path, which the processes that run the steps inherit.

    Raises:
        UserError: there is no such file, it cannot be a module, its name is another module's, or it
            fails.
    """
    if not file.is_file() or file.suffix != ".py":
        raise UserError(f"--load {file}: there is no such Python file")
    name = file.stem
    if not name.isidentifier():
        raise UserError(f"--load {file}: its name must be a Python name, such as my_arm.py")
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last: it must hide no library
    try:
        module = importlib.import_module(name)
    except UserError as error:
        raise UserError(f"--load {file}: {error}") from error
    except (Exception, SystemExit) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"--load {file}: {type(error).__name__}: {reason}") from error
    if Path(module.__file__ or "").resolve() != file.resolve():
        raise UserError(f"--load {file}: there is another module {name}: rename the file")
