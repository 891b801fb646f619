"""A scan's own rows are never refused because a reconstruction writes its rows at the same moment."""

from __future__ import annotations

import threading
from typing import Any

import pyarrow as pa


def test_tables_written_at_once_all_arrive(catalog_server: Any) -> None:
    schema = pa.schema([("seq_num", pa.int64()), ("value", pa.float64())])
    errors: list[BaseException] = []
    writers, rows = 4, 25
    tables = [catalog_server.client["models"].create_appendable_table(schema) for _ in range(writers)]

    def write(table: Any) -> None:
        try:
            for number in range(rows):
                table.append_partition(0, pa.table({"seq_num": [number], "value": [0.5]}, schema=schema))
        except BaseException as error:  # judged below, in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=write, args=(table,)) for table in tables]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    for table in tables:
        assert sorted(table.read()["seq_num"]) == list(range(rows))
