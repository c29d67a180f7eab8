"""Import objects by name, `package.module:attribute`; install what is missing."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

from secateurs.errors import SecateursError, SpecError, nearest


def import_object(name: str, spec: str) -> Any:
    """The attribute of a module; the working directory is searched, too. spec: what the user wrote, for messages.

    This runs the module's code: call it only for names that the user passed, never for names read from a file.

    Raises SpecError for a name that is not valid or not found, and for a module that cannot be imported.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or not attribute or not all(part.isidentifier() for part in module_name.split(".")):
        raise SpecError(f"{spec!r} is not a valid name: write python:package.module:name.")
    working = os.getcwd()
    if working not in sys.path and "" not in sys.path:
        sys.path.insert(0, working)
    try:
        module = _running(module_name) or importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise SpecError(f"{spec!r}: {module_name} needs {error.name}, which is not installed.") from error
        raise SpecError(f"{spec!r}: there is no module {error.name} in {working} or on sys.path.") from error
    except SecateursError:
        raise
    except SyntaxError as error:
        place = f"{error.filename}, line {error.lineno}"
        raise SpecError(f"{spec!r}: {module_name} is not valid Python: {error.msg} ({place}).") from error
    except Exception as error:  # whatever its code raises
        raise SpecError(f"{spec!r}: {module_name} cannot be imported: {type(error).__name__}: {error}.") from error
    found = getattr(module, attribute, None)
    if found is None:
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise SpecError(f"{spec!r}: {module_name} has no {attribute!r}. {nearest(attribute, public)}")
    return found


def _running(name: str) -> ModuleType | None:
    """The script that runs, if this is its name as a module: it would be run once more."""
    if name in sys.modules:
        return None
    main, found = sys.modules["__main__"], importlib.util.find_spec(name)
    file, origin = getattr(main, "__file__", None), None if found is None else found.origin
    if file is None or origin is None or not (os.path.isfile(file) and os.path.isfile(origin)):
        return None
    return main if os.path.samefile(file, origin) else None


def openvino() -> Any:
    """OpenVINO, without the part that sends usage statistics over the network. An OpenVINO that the user has imported already
    is left as it is."""
    reporter = "openvino_telemetry"  # optional for OpenVINO
    apart = "openvino" not in sys.modules and reporter not in sys.modules
    if apart:
        sys.modules[reporter] = None  # type: ignore[assignment]  # importing it raises ImportError
    try:
        return importlib.import_module("openvino")
    finally:
        if apart:
            del sys.modules[reporter]


def installing(extra: str, torch: str) -> str:
    """The command that installs an extra with torchvision in it, and keeps PyTorch, which has this version. Each torchvision
    requires one release of it, and the newest would replace it."""
    return f"pip install 'secateurs[{extra}]' torch=={torch.partition('+')[0]}"
