"""The fault suite: what happens to a cluster happens on purpose, many times over, and every job must end as if nothing had.

`run.py` is the whole of it (`make chaos`); `test_chaos.py` a short version for `make test`. docs/faults.md says what each fault is.
"""
