"""The tables of docs/scale.md follow from the plans of the published models."""

from pathlib import Path

import pytest

from tests.support.scale_tables import Cost, bytes_table, costs, fine_tunes_table, seconds_table

MANUAL = Path(__file__).parents[3] / "docs" / "scale.md"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Cost]:
    return costs(tmp_path_factory.mktemp("models"))


def test_manual_has_what_the_plans_say(found: dict[tuple[str, str], Cost]) -> None:
    manual = MANUAL.read_text(encoding="utf-8")
    for table in (bytes_table(found), seconds_table(found), fine_tunes_table(found)):
        assert table in manual, table


def test_the_slower_of_disk_and_processor_decides() -> None:
    cost = Cost(read=10**9, written=10**9, copied=0)
    assert cost.gigabytes == 3
    assert cost.seconds("to-bf16", 0.5, 4) == 6
    assert cost.seconds("to-bf16", 1e9, 2) == pytest.approx(1.7)
