"""Preferences: collecting them from listeners or simulated raters, keeping them, handing them on.

    page -> server -> store (database) -> export -> Parquet (dataset) -> pairs -> fit -> reward model
    pool -> simulated raters -----------------------^

Nothing is imported here: the store and the server need the extra `collect`, the dataset does not.
"""
