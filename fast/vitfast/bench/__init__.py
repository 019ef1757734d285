"""How fast `vitfast` is beside what one would use instead: `vitfast bench`, docs/bench.md.

`cases` says what is measured, `rows` who takes part, `worker` is the process in which one of them
runs, `measure` lets them take turns, `report` prints. Frameworks are imported in workers only.
"""
