"""Defects of published steering libraries, and the tests that exclude them here."""

import re
from pathlib import Path

import torch

from tl_steer.interventions import Add, steer

from .tiny_model import made_vector, make_model, run_alone, word_tokenizer

# Per defect, the tests that exclude it.
TESTS = """
'only generated tokens' has no effect under a key-value cache
    test_generation.py::test_every_position_is_steered_the_same_in_a_batch_as_alone_by_hand
    test_tracker.py::test_every_position_means_the_same_in_any_batch_with_and_without_a_cache
the first generated token is not steered
    test_generation.py::test_every_position_is_steered_the_same_in_a_batch_as_alone_by_hand
    test_generation.py::test_generated_tokens_alone_leave_the_first_new_token_as_it_was
a list of positions raises IndexError at the second decode step
    test_generation.py::test_every_position_is_steered_the_same_in_a_batch_as_alone_by_hand
only row 0 of a batch is steered
    test_operations.py::test_operations_equal_their_formulas_on_each_prompt_alone
    test_generation.py::test_a_batch_equals_its_rows_alone_also_when_sampling
the captured last token is padding
    test_capture.py::test_capture_equals_each_prompt_alone
    test_tracker.py::test_one_pass_selects_the_same_whatever_the_padding
a mask built from ids hides real tokens that equal the pad id
    test_capture.py::test_capture_equals_each_prompt_alone
    test_generation.py::test_every_position_is_steered_the_same_in_a_batch_as_alone_by_hand
    test_tracker.py::test_a_bare_tracker_trusts_the_mask_it_sees
a second BOS before a prompt that has one
    test_tokenizing.py::test_a_string_gets_the_ids_that_huggingface_gives_with_at_most_one_bos
    test_tokenizing.py::test_a_chat_prompt_is_not_given_a_second_bos_on_the_embedded_model
    test_tokenizing.py::test_to_tokens_adds_no_bos_to_a_chat_prompt_that_has_one
    test_tokenizing.py::test_two_bos_under_steer_warn
padded rows of ids are read as text
    test_tokenizing.py::test_padded_rows_of_ids_warn
    test_tokenizing.py::test_padded_completions_warn_and_those_that_end_in_an_eos_or_not_do_not
    test_tokenizing.py::test_a_pad_token_that_is_nothing_else_warns_wherever_it_stands
the last layer is the output of the final norm
    test_models.py::test_every_layer_equals_huggingface_before_the_final_norm
    test_models.py::test_huggingfaces_last_hidden_state_is_not_the_last_blocks_output
    test_backends.py::test_the_last_layer_is_the_last_blocks_output_and_not_after_the_norm
    test_exchange.py::test_a_tensor_of_hidden_states_begins_with_the_embedding_and_ends_after_the_norm
layer numbers differ by one between capture and steering
    test_capture.py::test_a_steered_layer_shows_exactly_the_added_vector
    test_backends.py::test_capture_at_the_steered_layer_shows_exactly_the_added_vector
a vector is added twice, or remains after a change of multiplier
    test_pitfalls.py::test_steering_three_times_in_turn_equals_steering_once
    test_backends.py::test_steering_twice_in_turn_is_steering_once
hooks leak after an exception, or the user's own hooks are removed
    test_steer.py::test_afterwards_every_hook_is_as_before_and_those_of_the_user_have_run
    test_steer.py::test_after_an_exception_every_hook_is_as_before
    test_engine.py::test_a_hook_of_the_user_s_own_is_honoured_and_stays
PCA of differences removes the signal by centring; its sign varies
    test_directions.py::test_uncentred_differences_keep_a_constant_signal
    test_directions.py::test_centring_removes_the_behaviours_mean_so_that_it_is_not_the_first_component
    test_directions.py::test_the_sign_is_the_pairs_majority_or_their_mean
    test_directions.py::test_estimates_are_the_same_every_time_and_in_any_order_of_the_pairs
a component of what does not vary is a coordinate axis; a zero vector steers nothing
    test_directions.py::test_where_nothing_varies_every_estimator_names_the_layer
    test_directions.py::test_a_component_beyond_the_variance_is_an_error_that_names_the_layer
    test_directions.py::test_activation_addition_of_equal_or_empty_prompts_is_an_error
    test_looking.py::test_components_of_differences_that_do_not_vary_are_refused
    test_vectors.py::test_errors_of_length_zero_name_the_layers
    test_sweep.py::test_a_vector_of_length_zero_is_rejected_by_name_and_layer
    test_generation.py::test_a_vector_minus_itself_changes_nothing
    test_operations.py::test_a_vector_of_length_zero_is_an_error_that_names_its_layer
    test_directions.py::test_where_nothing_varies_every_estimator_names_the_layer
    test_directions.py::test_differences_that_cancel_have_no_direction
    test_confounds.py::test_where_activations_do_not_vary_a_factors_direction_is_an_error_that_names_the_layer
    test_controls.py::test_controls_that_do_not_exist_are_errors
arguments are changed in place
    test_generation.py::test_generation_leaves_prompts_vectors_and_hooks_alone
    test_capture.py::test_capture_leaves_model_prompts_and_hooks_alone
    test_steer.py::test_vectors_tensors_and_residuals_are_not_changed
    test_directions.py::test_estimates_have_provenance_and_change_no_input
    test_vectors.py::test_vectors_are_immutable_and_arithmetic_does_not_change_them
large multipliers overflow in float16; NaN spreads without an error
    test_operations.py::test_an_overflow_names_layer_and_multiplier
    test_operations.py::test_half_precision_streams_are_changed_in_float32_and_rounded_once
    test_dtypes.py::test_the_prompt_in_which_the_stream_overflows_is_named
the probe's weights are in the scaler's space
    test_directions.py::test_the_logistic_direction_is_in_activation_space
a layer is chosen and its effect reported on the same prompts
    test_sweep.py::test_the_split_is_disjoint_and_balanced_over_factors_and_answers_for_every_seed
    test_evaluation_tables.py::test_the_choice_is_made_on_one_half_and_reported_on_the_other
means of many rows are computed in half precision
    test_directions.py::test_a_mean_over_a_long_run_is_not_taken_in_half_precision
a vector of a folded model, or of another model, is used
    test_identity.py::test_other_processing_is_refused_even_if_forced
    test_identity.py::test_scalar_centring_is_seen_in_the_weights_and_survives_a_file
    test_steer.py::test_a_vector_of_another_model_is_rejected_without_force
    test_steer.py::test_other_weights_are_accepted_only_with_force_by_capture_and_generate
unpickling runs code from a file
    test_exchange.py::test_a_pickle_with_code_is_rejected_and_not_run
sampling has no seed
    test_generation.py::test_the_seed_decides_and_another_seed_says_something_else
    test_directions.py::test_random_directions_take_a_seed_and_are_spread_over_the_sphere
    test_sweep.py::test_controls_have_the_vectors_length_are_marked_and_take_the_seed
multipliers are compared across layers of different stream norm
    test_sweep.py::test_the_dose_is_the_added_length_over_the_stream_s_norm_on_these_questions
right padding shifts positions in generation
    test_generation.py::test_the_tokenizer_s_padding_side_does_not_matter_and_stays
    test_generation.py::test_every_position_is_steered_the_same_in_a_batch_as_alone_by_hand
a split leaves a factor of the pairs unbalanced
    test_sweep.py::test_the_split_is_disjoint_and_balanced_over_factors_and_answers_for_every_seed
    test_analysis.py::test_folds_hold_equally_many_of_each_kind_of_pair
    test_analysis.py::test_the_letters_direction_does_not_pass_for_the_behaviours
an unknown hook name is ignored; a hook does not fire
    test_steer.py::test_a_hook_that_the_architecture_lacks_is_an_error_that_lists_the_others
    test_steer.py::test_an_operation_whose_hook_was_not_reached_is_an_error
    test_capture.py::test_bad_input_is_rejected
a chat template drops the user's or the system's message
    test_chat.py::test_a_template_that_drops_the_users_message_is_refused
    test_chat.py::test_a_template_that_drops_or_rejects_a_system_message_says_so
an answer's prefix is inside an open thinking block, or a header
    test_chat.py::test_the_answer_stands_in_no_thinking_block_and_no_header
a template's current date changes an experiment's prompts from day to day
    test_chat.py::test_a_template_with_the_current_date_warns_and_takes_one
    test_run_resume.py::test_a_run_continues_with_the_date_of_its_start_in_its_prompts
dropout is on in a model in training mode
    test_threads.py::test_dropout_changes_no_number_and_every_mode_is_restored
    test_threads.py::test_a_hooked_transformer_in_training_mode_is_evaluated
two threads steer one model, and each pass gets both vectors
    test_threads.py::test_two_threads_get_the_numbers_that_each_gets_alone
    test_threads.py::test_two_bridges_around_one_hugging_face_model_wait_for_each_other
a converter drops settings of the config
    test_models.py::test_settings_that_the_conversion_drops_are_refused_by_name
    test_models.py::test_half_precision_is_compared_with_and_without_memory_for_float32
    test_conversion.py::test_every_setting_is_loaded_equal_or_refused
    test_verify.py::test_a_dropped_setting_is_detected_in_half_precision
a constant added to all logit differences is reported as lost sensitivity
    test_verdicts.py::test_a_constant_leaves_the_auc_and_moves_both_kinds
    test_verdicts.py::test_a_constant_shift_is_bias_and_no_change_of_sensitivity
    test_organisms.py::test_steering_the_bias_organism_moves_the_criterion_and_leaves_what_it_knows
few shuffles or controls cannot be significant, and no layer is found
    test_sweep.py::test_by_default_there_are_enough_controls_for_p_below_5_percent_at_the_chosen_condition
    test_plots.py::test_separation_says_that_few_shuffles_cannot_be_significant
    test_plots.py::test_subtitles_say_which_p_value_so_few_controls_can_reach
the same prompt is in the half that chooses and in the half that reports
    test_sweep.py::test_the_same_prompt_twice_is_never_split_between_the_halves
    test_choosing.py::test_halves_hold_as_many_prompts_of_each_answer_and_keep_groups_together
    test_evaluation_tables.py::test_choose_rejects_tables_that_do_not_compare_like_with_like
    test_groups.py::test_draws_of_a_prompt_count_as_its_group_everywhere
a figure refuses a user's factor because of its name
    test_plots.py::test_a_factor_may_have_any_name_and_only_drawn_columns_are_checked
prompts of one group are resampled one by one
    test_groups.py::test_copies_of_a_row_are_one_row
    test_groups.py::test_effectiveness_and_flips_take_groups_whole
    test_verdicts.py::test_groups_of_d_prime_and_criterion_count_as_one_prompt_each
a caption and a sentence use two criteria
    test_evidence_report.py::test_the_controls_table_marks_what_its_sentence_calls_significant
    test_evidence_report.py::test_the_verdict_is_one_sentence_of_the_numbers_it_was_decided_by
text drawn once is compared with one other draw, and the difference is called the effect
    test_recorded.py::test_how_many_conditions_rise_depends_on_the_baseline_s_draw
    test_sweep.py::test_every_draw_of_a_sweep_equals_a_direct_call_with_its_seed
    test_groups.py::test_draws_of_a_prompt_count_as_its_group_everywhere
    test_coverage.py::test_with_several_draws_nothing_is_found_where_nothing_was_steered
an adapter is dropped
    test_models.py::test_adapters_are_merged_into_a_copy
    test_models.py::test_a_folder_with_an_adapter_is_the_adapted_model_or_refused
    test_models.py::test_adapters_that_are_not_in_the_weights_are_refused
"""


def test_every_pitfall_has_its_tests():
    assert re.fullmatch(r"(\S.*\n(    test_\w+\.py::test_\w+\n)+){40}", TESTS.lstrip())
    references = re.findall(r"(test_\w+\.py)::(test_\w+)", TESTS)
    texts = {file: Path(__file__).with_name(file).read_text(encoding="utf-8") for file, _ in references}
    assert [(file, test) for file, test in references if f"\ndef {test}(" not in texts[file]] == []


def test_steering_three_times_in_turn_equals_steering_once():
    model = make_model(word_tokenizer())
    vector, ids = made_vector(model, 1, scale=9.0), [0, 3, 4, 1, 5]
    tokens = torch.tensor([ids])
    with torch.no_grad():
        with steer(model, Add(vector, 1.0)):
            once = model(tokens)
        with steer(model, Add(vector, 5.0)):
            model(tokens)
        with steer(model, Add(vector, 1.0)):
            again, twice_inside = model(tokens), model(tokens)
    assert torch.equal(once, again)
    assert torch.equal(once, twice_inside)
    assert torch.equal(model(tokens)[0], run_alone(model, ids, 5)[0])
