"""The parts of the program that must be tested to the last line, each with its files."""

AREAS = {
    "codec": r"src/format/|src/chunk/frame|src/pack/trailer|src/pack/segment",
    "log": r"src/region/(log|audit|mod|session|error)\.rs|src/model/catalog/",
    "collection": r"src/region/(collect|orphans|compact)|src/ops/gc|src/pack/(merge|places)",
    "recovery": r"src/region/(salvage|fetch|intact|mend)|src/ops/(repair|verify)",
    "permissions": r"src/ops/(find|modify|account|context)\.rs|src/model/account",
}
