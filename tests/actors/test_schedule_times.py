"""Due times in their zones: beside cronsim over ten years, and where clocks are put forward and back."""

import datetime
from zoneinfo import ZoneInfo

import pytest
from cronsim import CronSim
from infinity_matrix_actors.errors import InvalidDefinition
from infinity_matrix_actors.schedule_times import check_cron, instant_of, next_tick, zone_of

BEGIN = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
# Half an hour of summer time in Lord Howe, a change at midnight in Santiago, two changes within weeks in Casablanca.
ZONES = ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "America/Santiago", "Africa/Casablanca"]
TEN_YEARS = ["30 2 * * *", "0 0 * * *", "0 0 29 2 *", "59 23 L * *", "15 1 1,15 * 5"]
THREE_YEARS = ["0,30 1-3 * * *", "0 0 */2 * 1", "0 9 * * mon-fri", "0 3 * * 1#2"]
REPEATED = ["*/10 * * * *", "30 * * * *", "15 */2 * * *"]


def compare(cron: str, zone: str, begin: datetime.datetime, days: int) -> int:
    """Compares each due time in so many days; answers how many they were."""
    at, end = begin.timestamp(), (begin + datetime.timedelta(days=days)).timestamp()
    count = 0
    for expected in CronSim(cron, begin.astimezone(ZoneInfo(zone))):
        found = next_tick(cron, ZoneInfo(zone), at)
        assert found == expected.timestamp(), f"{cron} in {zone}: cronsim says {expected}"
        at, count = found, count + 1
        if at > end:
            break
    return count


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("cron", TEN_YEARS)
def test_ten_years_of_due_times_are_those_of_cronsim(cron: str, zone: str) -> None:
    assert compare(cron, zone, BEGIN, 3653) >= 3


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("cron", THREE_YEARS)
def test_three_years_of_due_times_are_those_of_cronsim(cron: str, zone: str) -> None:
    assert compare(cron, zone, BEGIN, 1096) > 30


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York"])
@pytest.mark.parametrize("cron", REPEATED)
@pytest.mark.parametrize("month", [3, 10, 11])
def test_what_repeats_every_hour_goes_on_through_a_change_of_clocks(cron: str, zone: str, month: int) -> None:
    assert compare(cron, zone, datetime.datetime(2026, month, 1, tzinfo=datetime.UTC), 31) > 300


def berlin(*fields: int, fold: int = 0) -> float:
    return datetime.datetime(*fields, fold=fold, tzinfo=ZoneInfo("Europe/Berlin")).timestamp()  # type: ignore[arg-type]


def test_a_wall_time_that_occurs_twice_fires_once() -> None:
    zone = ZoneInfo("Europe/Berlin")
    first = next_tick("30 2 * * *", zone, berlin(2026, 10, 24, 12))
    assert first == berlin(2026, 10, 25, 2, 30)
    assert next_tick("30 2 * * *", zone, berlin(2026, 10, 25, 2, 10, fold=1)) == berlin(2026, 10, 26, 2, 30)
    assert next_tick("30 2 * * *", zone, first) == berlin(2026, 10, 26, 2, 30)


def test_a_wall_time_that_is_skipped_fires_at_the_first_instant_after() -> None:
    zone = ZoneInfo("Europe/Berlin")
    found = next_tick("30 2 * * *", zone, berlin(2026, 3, 28, 12))
    assert found == berlin(2026, 3, 29, 3, 0)
    assert next_tick("30 2 * * *", zone, found) == berlin(2026, 3, 30, 2, 30)


def test_a_wall_time_without_zone_is_one_instant_even_where_clocks_change() -> None:
    zone = ZoneInfo("Europe/Berlin")
    assert instant_of(datetime.datetime(2026, 3, 29, 2, 30), zone) == berlin(2026, 3, 29, 3, 0)
    assert instant_of(datetime.datetime(2026, 10, 25, 2, 30), zone) == berlin(2026, 10, 25, 2, 30)
    assert instant_of(datetime.datetime(2026, 6, 1, 2, 30), zone) == berlin(2026, 6, 1, 2, 30)
    # A whole day was left out.
    apia = ZoneInfo("Pacific/Apia")
    assert (
        instant_of(datetime.datetime(2011, 12, 30, 12), apia)
        == datetime.datetime(2011, 12, 31, tzinfo=apia).timestamp()
    )


def test_a_date_that_never_comes_is_none() -> None:
    assert next_tick("0 0 31 2 *", ZoneInfo("UTC"), BEGIN.timestamp()) is None
    assert next_tick("0 0 31 2,4 *", ZoneInfo("Europe/Berlin"), BEGIN.timestamp()) is None


@pytest.mark.parametrize(
    ("cron", "fields"),
    [(" 0  2 * * * ", "0 2 * * *"), ("@Daily", "0 0 * * *"), ("@hourly", "0 * * * *"), ("0 0 * * Sun", "0 0 * * Sun")],
)
def test_an_expression_becomes_five_fields(cron: str, fields: str) -> None:
    assert check_cron(cron, "here") == fields


@pytest.mark.parametrize(
    "cron",
    [
        *("", "0 2 * *", "* * * * * *", "a b c d e", "- - - - -", None, 5, "0 0 1 * *" + " " * 300),
        *("@reboot", "R * * * *", "H * * * *"),
        *("60 * * * *", "0 24 * * *", "0 0 * * 8", "*/0 * * * *", "1-99999999 * * * *", "0 0 * * 1#9"),
    ],
)
def test_what_is_no_expression_is_refused_where_it_is_written(cron: object) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        check_cron(cron, "here")
    assert caught.value.where == "here"
    assert "five fields" in caught.value.hint


@pytest.mark.parametrize("name", ["", "Mars/Base", "Europe", "/etc/localtime", "../UTC", "Europe/Berlin\0", None, 1])
def test_a_zone_that_does_not_exist_is_refused(name: object) -> None:
    with pytest.raises(InvalidDefinition, match="no time zone"):
        zone_of(name, "here")
