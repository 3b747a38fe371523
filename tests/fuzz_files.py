r"""What becomes of records and folders that are mutated at random.

  python -m tests.fuzz_files --rows=20000 --folders=300

Prints a table of kinds of mutation by outcome, and fails where one ends in
anything but a `ValueError` that names its place, where a record or file is
missing from the account, or where an outcome is none that the kind allows.
"""

import argparse

from tests import fuzz_faults, fuzz_folders, fuzz_records


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("--rows", type=int, default=20_000)
  parser.add_argument("--folders", type=int, default=300)
  parser.add_argument("--seed", type=int, default=0)
  flags = parser.parse_args()
  faults = fuzz_faults.Faults()
  table = fuzz_records.fuzz(flags.rows, flags.seed, faults)
  print(fuzz_faults.show(table, fuzz_records.OUTCOMES), end="\n\n")
  table = fuzz_folders.fuzz(flags.folders, flags.seed, faults)
  print(fuzz_faults.show(table, fuzz_folders.OUTCOMES))
  for (kind, what), count in faults.items():
    print(f"FAULT {count:,} of {kind!r}: {what}")
    print(f"      {faults.first[f'{kind}: {what}']}")
  raise SystemExit(bool(faults))


if __name__ == "__main__":
  main()
