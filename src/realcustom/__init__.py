"""RealCustom and RealCustom++: images of your own subject through a real word of the prompt.

Importing this package does nothing and is fast; a public name is imported from its module on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_EXPORTS = {
    "Engine": "realcustom.engine.engine",
    "MaskSettings": "realcustom.guidance.mask",
    "RealCustomAdapter": "realcustom.models.adapter",
    "RealCustomPipeline": "realcustom.pipelines.sd15",
    "RealCustomXLPipeline": "realcustom.pipelines.sdxl",
    "ReferenceEncoder": "realcustom.encoders.image",
    "Request": "realcustom.types",
    "Result": "realcustom.types",
    "Subject": "realcustom.types",
    "UNOPipeline": "realcustom.pipelines.uno",
}

__all__ = [*_EXPORTS, "__version__"]

if TYPE_CHECKING:
    from realcustom.encoders.image import ReferenceEncoder as ReferenceEncoder
    from realcustom.engine.engine import Engine as Engine
    from realcustom.guidance.mask import MaskSettings as MaskSettings
    from realcustom.models.adapter import RealCustomAdapter as RealCustomAdapter
    from realcustom.pipelines.sd15 import RealCustomPipeline as RealCustomPipeline
    from realcustom.pipelines.sdxl import RealCustomXLPipeline as RealCustomXLPipeline
    from realcustom.pipelines.uno import UNOPipeline as UNOPipeline
    from realcustom.types import Request as Request
    from realcustom.types import Result as Result
    from realcustom.types import Subject as Subject


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'realcustom' has no attribute '{name}'")
    value = getattr(import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_EXPORTS})
