"""A stranger's text in a CSV file is never a formula, and comes back as it was."""

import csv
import io

import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from histo_ssl.folders.cells import csv_text, exact, exact_table, harmless

STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")
TEXTS = st.text(
    alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\r\0")
) | st.sampled_from(["=1+1", "'=1", "''", "-", "+", "@SUM(A1)", "\tx", "NA", "007", '=HYPERLINK("x";"y")'])


@given(st.text())
def test_any_text_is_harmless_as_a_cell_and_exact_again(text: str) -> None:
    assert not harmless(text).startswith(STARTS)
    assert exact(harmless(text)) == text


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1))
def test_a_table_comes_back_from_its_file_and_holds_no_formula(rows: list[tuple[str, str]]) -> None:
    table = pd.DataFrame(rows, columns=["slide", "=label"]).assign(n=-1)
    text = csv_text(table)
    cells = [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]
    assert [cell for cell in cells if cell.startswith(STARTS) and cell != "-1"] == []
    read = exact_table(pd.read_csv(io.StringIO(text), dtype=str, keep_default_na=False))
    pd.testing.assert_frame_equal(read, table.astype(str), check_dtype=False)
