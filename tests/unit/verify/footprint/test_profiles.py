"""Budgets are devices by name, or sizes."""

import pytest

from gptoss_convert.errors import OptionError
from gptoss_convert.verify.footprint.profiles import find_budget, load_profiles


def test_every_device_leaves_most_of_its_memory_to_the_model() -> None:
    for name, budget in load_profiles().items():
        assert budget.name == name
        assert 0.75 * budget.memory < budget.available < budget.memory


def test_the_usual_devices_are_there() -> None:
    wanted = {"laptop-16gb", "gpu-8gb", "gpu-12gb", "gpu-16gb", "gpu-24gb", "gpu-80gb"}
    assert wanted <= load_profiles().keys()
    assert {load_profiles()[name].device for name in wanted - {"laptop-16gb"}} == {"gpu"}
    assert load_profiles()["laptop-16gb"].device == "cpu"


def test_a_size_is_all_for_the_model() -> None:
    budget = find_budget("16GB", "gpu")
    assert (budget.available, budget.memory, budget.device) == (16 * 10**9, 16 * 10**9, "gpu")


def test_what_is_neither_is_refused_with_the_names() -> None:
    with pytest.raises(
        OptionError, match="no such budget: found laptop, expected a size such as 16GB, or laptop-16gb"
    ):
        find_budget("laptop")
