"""Cells and a value per seed, for tests of tables and of the report."""

OFFICE = {
    ("office", "sasrec", "base"): [0.10, 0.20],
    ("office", "sasrec", "alphafuse"): [0.30, 0.30],
    ("office", "sasrec", "spectran"): [0.36, 0.30],
}
BOTH = OFFICE | {
    ("demo", "sasrec", "base"): [0.50, 0.50],
    ("demo", "sasrec", "alphafuse"): [0.20, 0.20],
    ("demo", "sasrec", "spectran"): [0.40, 0.40],
}
