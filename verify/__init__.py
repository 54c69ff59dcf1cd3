"""Proof that an artifact is the model that it claims to be."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptoss_convert.verify.verification import Verification


class _CallablePackage(ModuleType):
    """This package, which is also the function of its name.

    Importing a package makes it an attribute of its parent, in place of whatever had the name before; only so
    `gptoss_convert.verify(...)` works whether or not `gptoss_convert.verify.policy` has been imported.
    """

    def __call__(self, *arguments: Any, **options: Any) -> Verification:
        """Call `gptoss_convert.api.verify`."""
        from gptoss_convert.api import verify

        return verify(*arguments, **options)


sys.modules[__name__].__class__ = _CallablePackage
