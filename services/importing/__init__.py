"""`dripline import`: files of a shop's past (or present) through the public HTTP API.

A source format is one module named `*_format.py` in this folder, an import mapping one YAML file in `rules/imports`;
both are found by their folder. Nothing here knows the server's tables: what an import sends, any client could send.

    command.py   the command line          mapping.py  the mapping document, checked
    runner.py    reads, sends, resumes     values.py   how one value of an event is made from rows
    sending.py   one batch over HTTP       records.py  rows → records → events
    state.py     the progress file         files.py    opening, decompressing, recognising a file
    report.py    what is told at the end   formats.py  finds the formats
"""
