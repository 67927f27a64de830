"""Which tests are long: ``make test`` leaves them out, ``make long`` runs them."""

from __future__ import annotations

import pytest

LONG = (
    "test_after_training.py::test_loaded_equals_saved_and_exported[is-vit]",
    "test_cache_flow.py::test_a_budget_of_the_cache_is_met_and_the_opened_network_gives_it[params=80%",
    "test_cli.py::test_doctor",
    "test_export.py::test_bench[onnxruntime]",
    "test_families.py::test_families_are_measured",
    "test_flow.py::test_bytes_of_an_original_in_half_precision",
    "test_image_flow.py::test_a_budget_is_met[encoder-",
    "test_image_flow.py::test_recovery_brings_images_back_and_goes_on_where_it_was[classifier]",
    "test_joint.py::test_a_budget_of_bytes_is_met_by_codes[bytes=14%-none]",
    "test_joint.py::test_a_budget_of_bytes_is_met_by_codes[bytes=40%-none]",
    "test_joint.py::test_only_kinds_that_may_lose_units_do[params=75%",
    "test_joint.py::test_only_kinds_that_may_lose_units_do[params=80%",
    "test_joint.py::test_the_same_seed_gives_the_same_file",
    "test_joint.py::test_training_never_ends_worse_than_it_began[residual-codebook,deepcabac]",
    "test_joint.py::test_training_never_ends_worse_than_it_began[vptq]",
    "test_joint.py::test_units_go_beside_codes_that_look_up_or_factor",
    "test_learned_grids.py::test_trained_grids_meet_a_budget_and_are_the_same_for_a_seed[bitnet]",
    "test_learned_grids.py::test_two_levels_and_grids_of_both_kinds[deepcabac,paretoq",
    "test_matrix.py::test_minilm[magnitude]",
    "test_more_claims.py::test_one_rank_is_the_highest_that_fits",
    "test_reconstruct.py::test_reconstruction_on_minilm",
    "test_recovery.py::test_two_processes_do_what_one_does",
    "test_rounding.py::test_engines_compute_what_torch_does[onnxruntime]",
    "test_rounding_claim.py::test_the_narrowed_network_is_made_once",
    "test_solving.py::test_training_that_spoils_leaves_what_was_solved",
    "test_solving.py::test_what_was_solved_still_keeps_a_budget_of_bytes[paretoq,finequant]",
    "test_tasks.py::test_all_documentation_is_read",
)
"""What takes ten seconds or more: larger cases of what other tests hold as well, and seven that stand alone.

Alone stand what a benchmark or a claim prepares, the command ``doctor``, an original in half precision, that two
processes end with the weights of one, and that training that spoils is left out: ``make long`` before changing these.
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what is long."""
    for item in items:
        if item.nodeid.rpartition("/")[2].startswith(LONG):
            item.add_marker(pytest.mark.long)
