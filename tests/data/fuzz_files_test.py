"""Some mutations of `tests/fuzz_files.py`, which has a command for more."""

from tests import fuzz_faults, fuzz_folders, fuzz_records


def test_each_mutated_record_is_read_or_counted_or_refused_with_its_place():
  faults = fuzz_faults.Faults()
  table = fuzz_records.fuzz(8 * len(fuzz_records.KINDS), 7, faults)
  assert not faults, faults.first
  assert set().union(*table.values()) >= {"read", "noted", "broken"}


def test_each_file_of_a_mutated_folder_is_read_or_named_or_refused():
  faults = fuzz_faults.Faults()
  table = fuzz_folders.fuzz(4 * len(fuzz_folders.KINDS), 7, faults)
  assert not faults, faults.first
  assert len(set().union(*table.values())) == 3
