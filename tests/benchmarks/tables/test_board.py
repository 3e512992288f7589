"""Strengths, places, and the results that are kept in the repository."""

import json
from dataclasses import replace
from urllib.error import URLError

import pytest

from benchmarks import records
from benchmarks.tables import board, table2, table2u, table3, table4, table5
from benchmarks.tables.__main__ import TABLES


def _place(table, row, data="CIFAR-10", scale="smoke"):
    return board.Place(table.TABLE.name, scale, "nowhere", row, data)


@pytest.mark.parametrize("name", TABLES)
def test_every_kept_result_is_found_by_its_row(name):
    """A row that is run again takes the kept file: same name, same settings."""
    table = TABLES[name]
    kept = sorted((records.RESULTS / "tables" / name / "cpu").glob("*.json"))
    runs, tunings = {}, {}
    for place in table.places("cpu", "nowhere"):
        tuned = board.tuned_as(place)
        runs[place.title], tunings[board.tuning_of(tuned).row] = place, tuned
    assert kept
    for path in kept:
        document = records.read(path)
        run = records.Run(name, "cpu", document["row"], document["seed"])
        assert run.path.name == path.name
        if document["row"] in runs:
            place, strength = runs[document["row"]], document["settings"].get("strength")
            settings = place.settings(0.0 if strength is None else strength)
            assert strength in (place.the_row.strengths or (None,))
        else:
            place = tunings[document["row"]]
            settings = place.settings() | {"strengths": place.the_row.strengths}
        assert json.loads(json.dumps(settings)) == document["settings"], path.name


def test_strengths_in_kept_results_are_those_that_were_chosen():
    place = _place(table5, "cetl_gfi", "MN-US", "cpu")
    chosen = board.strength_of(place)
    runs = table5.TABLE.results("cpu")[place.title]
    assert {run["settings"]["strength"] for run in runs.values()} == {chosen}
    assert board.strength_of(_place(table2, "cetl_e")) == 0.0


def test_a_row_is_found_by_id_and_by_title():
    assert table2.TABLE.find("cetl_gfi") is table2.TABLE.find("CETL gfi")
    with pytest.raises(ValueError, match=r"no row 'CETL'; it has baseline \(baseline\)"):
        table2.TABLE.find("CETL")


def test_places_are_those_of_the_scale():
    assert len(table5.TABLE.places("cpu", "nowhere", ["MCC", "sa"])) == 2 * 4
    rows = {place.row for place in table3.TABLE.places("smoke", "nowhere")}
    assert rows == {"lite0", "five_classes", "digits"}


def test_half_the_rounds_for_two_passes_over_the_labels():
    whole, half = (_place(table2, row, scale="cpu").budget for row in ("cetl_e", "best_mixed_e"))
    assert (half.epochs, half.warmup_epochs) == (whole.epochs // 2, whole.warmup_epochs // 2)


def test_a_strength_is_chosen_on_validation_images(photographs, small_source, monkeypatch, results):
    parts = []
    whole = photographs._accuracy
    monkeypatch.setattr(
        photographs, "_accuracy", lambda *args: parts.append(args[-1]) or whole(*args)
    )
    place = _place(table2, "probe")
    board.tune(place)
    assert set(parts) == {"validation"}
    board.one(place, 0)
    assert parts[-1] == "test"
    document = json.loads((results / "table2/smoke/linear_probe_on_S-seed0.json").read_text())
    assert document["figures"]["data"] == "CIFAR-10 (made here)"
    assert document["settings"]["strength"] in table2.ROWS["probe"].strengths


def test_a_score_that_is_no_number_is_not_chosen(monkeypatch, photographs, small_source):
    scores = iter([float("nan"), -5.0, float("inf")])
    monkeypatch.setattr(table2.TABLE, "score", lambda *args: next(scores))
    row = replace(table2.ROWS["probe"], strengths=(1e-4, 1e-3, 1e-2))
    monkeypatch.setitem(table2.ROWS, "probe", row)
    assert "strength 0.001, of" in board.tune(_place(table2, "probe"))


def test_more_strengths_than_were_tried_go_on_with_what_is_missing(
    monkeypatch, photographs, small_source, results
):
    def scores(*values):
        left = iter(values)
        monkeypatch.setattr(table2.TABLE, "score", lambda *args: next(left))

    def grown(*strengths):
        row = replace(table2.ROWS["probe"], strengths=strengths)
        monkeypatch.setattr(table2.TABLE, "rows", table2.ROWS | {"probe": row})

    place = _place(table2, "probe")
    grown(0.1, 1.0)
    scores(1.0, 2.0)
    assert "strength 1.0, of" in board.tune(place)
    first = records.read(board.tuning_of(place).path)
    grown(0.1, 1.0, 10.0)
    scores(3.0)
    assert "strength 10.0, of {'0.1': 1.0, '1.0': 2.0, '10.0': 3.0}" in board.tune(place)
    found = records.read(board.tuning_of(place).path)
    (before,) = found["figures"]["before"]
    assert before["strengths"] == ["0.1", "1.0"] and before["seconds"] == first["seconds"]
    assert found["settings"] == first["settings"] | {"strengths": [0.1, 1.0, 10.0]}
    grown(0.1, 3.0)
    with pytest.raises(ValueError, match="other settings"):
        board.tune(place)


def test_what_is_not_there_leaves_a_row_not_run(photographs, small_source, monkeypatch, capsys):
    table, there = table3.TABLE, photographs.encoder_of
    names = ("stl10_no_source", "vgg16", "lite0")
    rows = {name: replace(table3.ROWS[name], scales=("smoke",)) for name in names}
    monkeypatch.setattr(table, "rows", rows)

    def encoder_of(place):
        if place.row == "vgg16":
            raise URLError("no network")
        return there(place)

    monkeypatch.setattr(photographs, "encoder_of", encoder_of)
    board.run(table, "smoke", "nowhere", 1)
    said = capsys.readouterr().out
    assert "VGG-16: not run. <urlopen error no network>" in said
    assert "STL-10, no source: not run. STL10 is not there" in said
    assert table.render("smoke").endswith("STL-10, no source (paper 60.52); VGG-16 (paper 65.57).")
    for name in names[:2]:  # asked for by name, it is an error
        with pytest.raises((URLError, FileNotFoundError)):
            board.run(table, "smoke", "nowhere", 1, [name])
    monkeypatch.setattr(table, "rows", {name: rows[name] for name in names[:2]})
    with pytest.raises((URLError, FileNotFoundError)):
        board.run(table, "smoke", "nowhere", 1)


@pytest.mark.parametrize(
    ("table", "rows"),
    [
        (table2u, ["soft_targets", "hints"]),
        (table3, ["lite0"]),
        (table4, ["teacher", "student", "fitnets", "fsp"]),
    ],
    ids=["table2u", "table3", "table4"],
)
def test_rows_run_and_the_others_are_named(photographs, small_source, table, rows):
    board.run(table.TABLE, "smoke", "nowhere", 1, rows)
    not_run = table.TABLE.render("smoke").split("Not run: ")[1].split("; ")
    assert len(not_run) == len(table.ROWS) - len(rows)
