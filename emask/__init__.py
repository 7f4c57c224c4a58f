"""emask: an erasable adversarial mask for the faces in photos.

Importing this package loads no heavy library; the public names below are fetched when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from emask.engine import Engine, open_engine
    from emask.errors import EmaskError, ImageError, ModelError, NoFaceError, TrainingError, UsageError
    from emask.images import Photo, load_photo, save_photo
    from emask.pipeline.erase import erase_photos
    from emask.pipeline.protect import protect_photos
    from emask.pipeline.verify import verify_photos

_HOME = {
    "EmaskError": "emask.errors",
    "ImageError": "emask.errors",
    "ModelError": "emask.errors",
    "NoFaceError": "emask.errors",
    "TrainingError": "emask.errors",
    "UsageError": "emask.errors",
    "Engine": "emask.engine",
    "open_engine": "emask.engine",
    "Photo": "emask.images",
    "load_photo": "emask.images",
    "save_photo": "emask.images",
    "erase_photos": "emask.pipeline.erase",
    "protect_photos": "emask.pipeline.protect",
    "verify_photos": "emask.pipeline.verify",
}

__all__ = [
    "EmaskError",
    "Engine",
    "ImageError",
    "ModelError",
    "NoFaceError",
    "Photo",
    "TrainingError",
    "UsageError",
    "__version__",
    "erase_photos",
    "load_photo",
    "open_engine",
    "protect_photos",
    "save_photo",
    "verify_photos",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'emask' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
