"""Whether an artifact fits the devices that a recipe names, predicted from its headers."""

from __future__ import annotations

from pathlib import Path

from gptoss_convert.errors import UnsupportedError
from gptoss_convert.recipes.recipe import FootprintRecipe
from gptoss_convert.verify.footprint.footprint import Footprint, take_footprint
from gptoss_convert.verify.footprint.prediction import conditions_for, model_for
from gptoss_convert.verify.footprint.profiles import find_budget
from gptoss_convert.verify.footprint.subject import open_subject


def footprint_of(artifact: Path, stated: FootprintRecipe) -> Footprint | None:
    """Predict the memory of an artifact in its usual runtime; None if no runtime loads it, or no device is named.

    Raises:
        InputError: the artifact is damaged.
    """
    if not stated.devices:
        return None
    try:
        subject = open_subject(artifact)
        model = model_for(subject)
    except UnsupportedError:
        return None
    how = conditions_for(subject, model, context=stated.context)
    return take_footprint(subject, model, how, budgets=[find_budget(device) for device in stated.devices])
