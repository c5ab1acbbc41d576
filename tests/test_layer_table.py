"""The rows that stand for all others: every structure that occurs in the table is among them."""

from layer_table import REPRESENTATIVES, TABLE, structure


def test_every_structure_of_the_table_has_a_representative() -> None:
    structures = {row.name: structure(row) for row in TABLE}
    represented = {structures[name] for name in REPRESENTATIVES}
    missing = [name for name, kinds in structures.items() if kinds not in represented]
    assert not missing, f"add to REPRESENTATIVES one of each structure among {missing}"


def test_representatives_are_rows_and_each_is_named_once() -> None:
    assert len(set(REPRESENTATIVES)) == len(REPRESENTATIVES)
    assert set(REPRESENTATIVES) <= {row.name for row in TABLE}
