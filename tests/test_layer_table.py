"""The rows that stand for all others: every structure that occurs in the table is among them."""

from layer_table import REPRESENTATIVES, TABLE, structure

import moduli


def test_every_structure_of_the_table_has_a_representative() -> None:
    structures = {row.name: structure(row) for row in TABLE}
    represented = {structures[name] for name in REPRESENTATIVES}
    missing = [name for name, kinds in structures.items() if kinds not in represented]
    assert not missing, f"add to REPRESENTATIVES one of each structure among {missing}"


def test_representatives_are_rows_and_each_is_named_once() -> None:
    assert len(set(REPRESENTATIVES)) == len(REPRESENTATIVES)
    assert set(REPRESENTATIVES) <= {row.name for row in TABLE}


def test_the_shapes_that_layers_declare_are_those_of_their_values():
    seen = set()
    for row in TABLE:
        for path, module in moduli.iter_modules(row.model()):
            for name, attributes in getattr(module, "__value_shapes__", {}).items():
                value = getattr(module, name, None)
                if isinstance(value, moduli.Variable) and hasattr(value.value, "shape"):
                    sizes = [getattr(module, attribute) for attribute in attributes]
                    flat = [
                        n for size in sizes for n in (size if isinstance(size, tuple) else (size,))
                    ]
                    assert value.shape[-len(flat) :] == tuple(flat), (row.name, path, name)
                    seen.add((type(module).__name__, name))
    assert {"kernel", "bias", "scale", "mean", "embedding", "lora_a"} <= {name for _, name in seen}
